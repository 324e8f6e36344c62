"""Keys and certificates in PEM files: what verifies a signature, and what makes one.

The only module that imports cryptography, when a key is first read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from seamfast.errors import DataFileError, InputError
from seamfast.isolation.folders import lies_in
from seamfast.untrusted import open_regular, printable

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

PASSWORD = "SEAMFAST_SIGN_PASSWORD"
"""Environment variable with the password of an encrypted private key."""

MAX_KEY_BYTES = 256 << 10
MAX_CHAIN = 8  # certificates in a signature


@dataclass(frozen=True)
class PublicKey:
    """A public key: EC P-256, P-384, P-521, or Ed25519.

    Attributes:
        sha256: of its SubjectPublicKeyInfo in DER, as ``openssl pkey -pubin -outform DER | sha256sum`` prints it.
        hint: SHA-256 of its PEM, which model signatures carry.
    """

    sha256: str
    hint: str
    _key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey = field(repr=False)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` is by this key and over ``message``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, message, ec.ECDSA(_hash_of(self._key)))
            else:
                self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key, EC P-256 or Ed25519, with its public half."""

    public: PublicKey
    _key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """The signature over ``message``: DER of ECDSA with SHA-256, or 64 bytes of Ed25519."""
        from cryptography.hazmat.primitives.asymmetric import ec

        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, ec.ECDSA(_hash_of(self._key.public_key())))
        return self._key.sign(message)


@dataclass(frozen=True)
class Signer:
    """Who signed: the key, and the subject of its certificate if that vouches for the key."""

    key: PublicKey
    subject: str | None = None

    @property
    def name(self) -> str:
        """E.g. ``key sha256:3f...``, for a sentence."""
        return f"key sha256:{self.key.sha256}" + ("" if self.subject is None else f" of {self.subject}")


class Verifier(Protocol):
    """What the operator trusts: a key, or certificates; ``kind`` is ``"key"`` or ``"certificate"``."""

    @property
    def kind(self) -> str: ...

    def signer(self, material: Mapping[str, Any]) -> Signer:
        """The one whose key the signature must verify with. ``material`` is ``verificationMaterial`` of a bundle.

        Raises:
            ValueError: none of it is trusted; the message says why, and may need ``printable``.
        """


@dataclass(frozen=True)
class TrustedKey:
    """One public key; whatever a signature says of keys is ignored."""

    key: PublicKey
    kind: str = "key"

    def signer(self, material: Mapping[str, Any]) -> Signer:
        return Signer(self.key)


@dataclass(frozen=True)
class TrustedCertificates:
    """Certificates, each of them an anchor: of an authority, or of the signer alone."""

    certificates: tuple[x509.Certificate, ...] = field(repr=False)
    kind: str = "certificate"

    def signer(self, material: Mapping[str, Any]) -> Signer:
        """The subject of the first certificate in ``material``, once a path to an anchor is valid today.

        Its key usage, if stated, must allow digital signatures; its extended key usage, if stated, code signing: a
        certificate for a web server by the same authority signs no model. One of the two must be stated.
        """
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm

        try:
            return self._signer([x509.load_der_x509_certificate(der) for der in _chain(material)])
        except (
            UnsupportedAlgorithm,
            x509.DuplicateExtension,
            x509.InvalidVersion,
            x509.UnsupportedGeneralNameType,
        ) as error:
            raise ValueError(f"its certificate cannot be read: {error}") from error

    def _signer(self, chain: list[x509.Certificate]) -> Signer:
        from cryptography import x509
        from cryptography.x509 import verification

        # Names of hosts and clients mean nothing here, so only what the authorities need is required of extensions.
        policy = verification.PolicyBuilder().store(verification.Store(list(self.certificates)))
        policy = policy.extension_policies(
            ca_policy=verification.ExtensionPolicy.permit_all()
            .require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, _is_authority)
            .may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _signs_certificates),
            ee_policy=verification.ExtensionPolicy.permit_all(),
        )
        try:
            policy.build_client_verifier().verify(chain[0], chain[1:])
        except verification.VerificationError as error:
            raise ValueError(f"its certificate is not valid by those that are trusted: {error}") from error
        _check_usage(chain[0])
        key = chain[0].public_key()
        return Signer(_public(key, "its certificate"), printable(chain[0].subject.rfc4514_string()))


def read_verifier(
    verify_key: str | os.PathLike[str] | None,
    verify_certificate: str | os.PathLike[str] | None,
    *,
    model: str | os.PathLike[str],
) -> Verifier | None:
    """What the operator trusts, from one of two PEM files; ``None`` if neither is given.

    Args:
        verify_key: a public key: EC P-256, P-384, P-521, or Ed25519.
        verify_certificate: one or more certificates, each an anchor of trust.
        model: the model folder, in which neither may lie: who supplies the model must not supply the key.

    Raises:
        InputError: e.g. ``verify_key is 'model/pub.pem', inside the model folder; expected a file elsewhere``.
    """
    if verify_key is not None and verify_certificate is not None:
        raise InputError("verify_key and verify_certificate are given; expected one of them")
    if verify_key is not None:
        return TrustedKey(_read_public_key(verify_key, model))
    if verify_certificate is not None:
        return TrustedCertificates(_read_certificates(verify_certificate, model))
    return None


def read_signing_key(path: str | os.PathLike[str], *, model: str | os.PathLike[str]) -> SigningKey:
    """The private key in a PEM file, EC P-256 or Ed25519; a password is taken from ``SEAMFAST_SIGN_PASSWORD``.

    Raises:
        InputError: e.g. ``sign_key is 'key.pem', an RSA key; expected EC P-256 or Ed25519``.
    """
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_pem("sign_key", path, model, "a private key as PEM")
    password = os.environ.get(PASSWORD)
    where = f"sign_key is {printable(path)!r}"
    try:
        key = load_pem_private_key(content, None if password is None else password.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        expected = f"expected a private key as PEM, its password, if it has one, in {PASSWORD}"
        raise InputError(f"{where}, which cannot be read ({printable(error)}); {expected}") from error
    if isinstance(key, ed25519.Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    ):
        return SigningKey(_public(key.public_key(), where), key)
    raise InputError(f"{where}, {_described(key)}; expected EC P-256 or Ed25519")


def mode_warning(path: str | os.PathLike[str]) -> str | None:
    """A sentence if a private key's file is open to others than its owner."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077 == 0:
        return None
    return f"the signing key's file has mode {mode:04o}, open to others than its owner; expected 0600"


def require_cryptography() -> None:
    """Raises ``InputError`` if the extra is not installed."""
    try:
        import cryptography.x509.verification  # noqa: F401
    except ImportError as error:
        raise InputError('signatures need cryptography: pip install "seamfast[sign]"') from error


def _read_public_key(path: str | os.PathLike[str], model: str | os.PathLike[str]) -> PublicKey:
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read_pem("verify_key", path, model, "a public key as PEM")
    where = f"verify_key is {printable(path)!r}"
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{where}, which cannot be read ({printable(error)}); expected a public key as PEM") from error
    try:
        return _public(key, where)
    except ValueError as error:
        raise InputError(str(error)) from error


def _read_certificates(path: str | os.PathLike[str], model: str | os.PathLike[str]) -> tuple[x509.Certificate, ...]:
    require_cryptography()
    from cryptography import x509

    content = _read_pem("verify_certificate", path, model, "certificates as PEM")
    try:
        return tuple(x509.load_pem_x509_certificates(content))
    except ValueError as error:
        where = f"verify_certificate is {printable(path)!r}"
        raise InputError(f"{where}, which cannot be read ({printable(error)}); expected certificates as PEM") from error


def _read_pem(name: str, path: str | os.PathLike[str], model: str | os.PathLike[str], what: str) -> bytes:
    """A file that the operator names, links followed, which lies outside the model folder."""
    where = f"{name} is {printable(path)!r}"
    if lies_in(path, model):
        raise InputError(f"{where}, inside the model folder; expected a file elsewhere")
    try:
        with open_regular(path, what) as file:
            content = file.read(MAX_KEY_BYTES + 1)
    except DataFileError as error:
        raise InputError(f"{name}: {error}") from error
    if len(content) > MAX_KEY_BYTES:
        raise InputError(f"{where}, of more than {MAX_KEY_BYTES:,} bytes; expected {what}")
    return content


def _public(key: Any, where: str) -> PublicKey:
    """The key as it is used here. Raises ``ValueError``, which is an ``InputError``, for another kind of key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, ed25519.Ed25519PublicKey) and not (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1", "secp521r1")
    ):
        raise InputError(f"{where}, {_described(key)}; expected EC P-256, P-384, P-521, or Ed25519")
    der, pem = (key.public_bytes(form, PublicFormat.SubjectPublicKeyInfo) for form in (Encoding.DER, Encoding.PEM))
    return PublicKey(hashlib.sha256(der).hexdigest(), hashlib.sha256(pem).hexdigest(), key)


def _described(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)):
        return f"an EC key on {key.curve.name}"
    if isinstance(key, (rsa.RSAPublicKey, rsa.RSAPrivateKey)):
        return "an RSA key"
    return f"a key of type {type(key).__name__}"


def _hash_of(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    """As OpenSSF model signing and DSSE tools pair them: SHA-2 of the curve's size."""
    from cryptography.hazmat.primitives import hashes

    by_size: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return by_size[key.curve.key_size]


def _chain(material: Mapping[str, Any]) -> list[bytes]:
    """The certificates of a bundle in DER, that of the signer first: a chain, or in newer bundles one alone."""
    if "x509CertificateChain" in material:
        chain = material["x509CertificateChain"]
        entries = chain.get("certificates") if isinstance(chain, dict) else None
    else:
        entries = [material.get("certificate")]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_CHAIN:
        raise ValueError(f"it holds no list of 1 to {MAX_CHAIN} certificates")
    try:
        return [base64.b64decode(entry["rawBytes"], validate=True) for entry in entries]
    except (TypeError, KeyError, binascii.Error) as error:
        raise ValueError("it holds no certificate where one is expected") from error


def _is_authority(policy: Any, certificate: Any, constraints: Any) -> None:
    if not constraints.ca:
        raise ValueError("a certificate in the chain is not one of an authority")


def _signs_certificates(policy: Any, certificate: Any, usage: Any) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a certificate in the chain must not sign others")


def _check_usage(certificate: x509.Certificate) -> None:
    from cryptography import x509

    stated = 0
    for kind, allows, wanted in (
        (x509.KeyUsage, lambda usage: usage.digital_signature, "digital signatures"),
        (x509.ExtendedKeyUsage, lambda usage: x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in usage, "code signing"),
    ):
        try:
            usage = certificate.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            continue
        if not allows(usage):
            raise ValueError(f"its certificate is not for {wanted}")
        stated += 1
    if not stated:
        raise ValueError("its certificate states no usage; expected one for digital signatures or code signing")
