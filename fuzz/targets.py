"""What is fuzzed: a reader of strangers' bytes, inputs that it takes, and what an input may lead to.

An input may be refused, by an ``InputError`` whose message is short and printable, or read. All else is a defect.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image
from safetensors.torch import save

from seamfast.data import CleanSet
from seamfast.data.readers import read_idx, read_image_folder, read_npz
from seamfast.errors import DataFileError, InputError, PolicyError
from seamfast.gating.architecture import parse_architecture
from seamfast.gating.config_json import parse_config
from seamfast.gating.decision import decide
from seamfast.gating.policy import TEMPLATE, describe, parse_policy
from seamfast.gating.provenance.bundle import model_signature
from seamfast.gating.provenance.dsse import envelope
from seamfast.gating.provenance.keys import TrustedCertificates, TrustedKey, read_signing_key
from seamfast.gating.provenance.model_signature import read_model_signature
from seamfast.intake.identify import READABLE, look, refuse_kind
from seamfast.intake.refusal import RefusedError
from seamfast.intake.tensors import TensorSpec, read_tensors

# Ed25519 from fixed bytes, so that equal seeds give equal runs.
_PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(32))
_NAME = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "signer")])
_CERTIFICATE = (
    x509.CertificateBuilder(_NAME, _NAME, _PRIVATE.public_key(), serial_number=1)
    .not_valid_before(datetime(2020, 1, 1))
    .not_valid_after(datetime(2090, 1, 1))
    .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    .sign(_PRIVATE, None)
)
CERTIFICATE = _CERTIFICATE.public_bytes(Encoding.DER)
with tempfile.TemporaryDirectory() as _folder:  # the key as an operator has it
    _path = Path(_folder) / "key.pem"
    _path.write_bytes(_PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    KEY = read_signing_key(_path, model="/nowhere")
TRUSTED_KEY, TRUSTED_CERTIFICATE = TrustedKey(KEY.public), TrustedCertificates((_CERTIFICATE,))
SIGNED = {"model.json": "0" * 64, "model.safetensors": "1" * 64}
SIGNATURE = model_signature("model", SIGNED, KEY)
BUNDLE = json.loads(SIGNATURE)
STATEMENT = base64.b64decode(BUNDLE["dsseEnvelope"]["payload"])


@dataclass(frozen=True)
class Target:
    """A reader under fire.

    Attributes:
        run: reads an input and says whether it was accepted; raises on a defect.
        seeds: inputs to begin with, all of them accepted.
        words: what a mutation may put in, beside bytes of its own.
    """

    run: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


def refusal(read: Callable[[], object], kind: type[InputError]) -> bool:
    """Whether ``read`` refuses, as it should: by an error of this kind that fits a terminal."""
    try:
        read()
    except kind as error:
        message = str(error)
        assert message.isprintable(), f"the message is not printable: {message!r}"
        assert len(message) < 2000, f"the message has {len(message)} characters"
        return True
    return False


# A header that says how long it is would stop most mutations at once, so half of the inputs are a header alone.

STATE = {"bias": torch.zeros(2), "steps": torch.tensor(3), "weight": torch.ones(2, 3, dtype=torch.float16)}
EXPECTED = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in STATE.items()}
WHOLE = save(STATE)
HEADER = WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]]


def run_header(data: bytes) -> bool:
    """A safetensors file: after ``w`` as it stands, after anything else its header, to which the rest is added."""
    content = data[1:]
    if data[:1] != b"w":
        content = struct.pack("<Q", len(content)) + content + WHOLE[8 + len(HEADER) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        if refusal(lambda: read_tensors(path, EXPECTED, what="the target"), RefusedError):
            return False
        weights = read_tensors(path, EXPECTED, what="the target")
    found = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.state.items()}
    assert found == EXPECTED, f"other tensors than expected: {found}"
    assert weights.n_bytes == len(content), f"{weights.n_bytes} bytes of {len(content)}"
    return True


def run_policy(data: bytes) -> bool:
    """A policy: one that is accepted can be described, and passes nothing without a measurement."""
    if refusal(lambda: parse_policy(data), PolicyError):
        return False
    policy = parse_policy(data)
    json.dumps(policy.to_dict(), allow_nan=False)
    assert all(line.isprintable() for line in describe(policy).splitlines())
    assert decide(policy, {}).outcome == "inconclusive"
    return True


def run_config(data: bytes) -> bool:
    """A model's description, as strict JSON and as either of the two files that may select an architecture."""
    if refusal(lambda: parse_config(data, "config.json"), RefusedError):
        return False
    choice = parse_architecture(None, {})
    for name in ("model.json", "config.json"):
        refusal(lambda name=name: choice.resolve({name: data}, "/nowhere"), InputError)
    return True


def run_signature(data: bytes) -> bool:
    """A model's signature: after ``s`` a statement, signed with the trusted key; after ``c`` the certificate that a
    sound signature comes with; after anything else a whole bundle.
    """
    rest, content, trusted = data[1:], data[1:], TRUSTED_KEY
    if data[:1] == b"s":
        content = json.dumps({**BUNDLE, "dsseEnvelope": envelope(rest, KEY)}).encode()
    elif data[:1] == b"c":
        material = {"certificate": {"rawBytes": base64.b64encode(rest).decode()}}
        content, trusted = json.dumps({**BUNDLE, "verificationMaterial": material}).encode(), TRUSTED_CERTIFICATE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.sig"
        path.write_bytes(content)
        if refusal(lambda: read_model_signature(path, trusted), RefusedError):
            return False
        digests = read_model_signature(path, trusted).digests
    assert digests
    assert data[:1] == b"s" or digests == SIGNED, f"files that were not signed: {digests}"
    assert data[:1] != b"c" or rest == CERTIFICATE, "a certificate that is not the one that is trusted"
    return True


SMALL = b'version=1\nname="a"\nrule=[{id="b",metric="sanitize.accepted",threshold=true,greater_is_better=true}]\n'
SETTINGS = SMALL + b"[sanitize]\nsettings={strengths=[1.0],radius=2}\n[audit]\nlevel=0.9\ninversion=false\n"
DESCRIPTION = (
    b'{"format":"seamfast-model","version":1,"architecture":"small_cnn","num_classes":4,"in_channels":1,'
    b'"image_size":8,"mean":[0.5],"std":[0.25]}'
)
VIT = b'{"model_type":"vit","hidden_size":32,"image_size":8,"patch_size":4,"id2label":{"0":"a","1":"b"}}'
NUMBERS = (b"-1", b"0", b"1e999", b"9223372036854775808", b"0x" + b"f" * 64, b"nan", b"true", b"null", b"1_0.5")
MARKS = (
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"'",
    b",",
    b":",
    b"=",
    b".",
    b"\n",
    b"#",
    b"\\u001b",
    b"\\ud800",
    b"\0",
    b"\xff",
)
NESTED = (b"[" * 2000, b'{"a":' * 2000, b"a." * 150, b"[[rule]]\n")
WORDS = (*NUMBERS, *MARKS, *NESTED)

# Clean data. Check sums would stop most mutations of a zip or a gzip stream, so half of the inputs are packed here.


def run_kind(data: bytes) -> bool:
    """A file's name, a newline, its bytes: they have a kind, which is read or can be refused. Whether it is known."""
    name, _, content = data.partition(b"\n")
    kind = look(io.BytesIO(content)).kind(name.decode("utf-8", "replace"))
    assert kind in READABLE or refusal(lambda: refuse_kind(kind, "x"), RefusedError)
    return kind != "unknown"


def read_from(name: str, content: bytes, read: Callable[[Path], CleanSet]) -> bool:
    """Whether ``read`` takes a file of this name, or refuses it as it should."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        found: list[CleanSet] = []
        if refusal(lambda: found.append(read(path)), DataFileError):
            return False
    assert len(found[0]) <= MOST_SAMPLES, f"{len(found[0])} samples of {len(content)} bytes"
    return True


def run_npz(data: bytes) -> bool:
    """An archive: after ``w`` as it stands, after anything else the array of images, packed here."""
    content = data[1:]
    if data[:1] != b"w":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
            archive.writestr("y.npy", LABELS_NPY)
        content = packed.getvalue()
    return read_from("a.npz", content, lambda path: read_npz(path, max_bytes=1 << 24))


def run_idx(data: bytes) -> bool:
    """A file of images: after ``w`` as it stands, after anything else gzipped here."""
    content = data[1:] if data[:1] == b"w" else gzip.compress(data[1:], 1)

    def read(path: Path) -> CleanSet:
        path.with_name("labels").write_bytes(LABELS_IDX)
        return read_idx(path, path.with_name("labels"), max_bytes=1 << 24)

    return read_from("images", content, read)


def run_image(data: bytes) -> bool:
    """A PNG or a JPEG in a folder of one class."""

    def read(path: Path) -> CleanSet:
        return read_image_folder(path.parents[1], size=(4, 4), channels=3, max_pixels=1 << 20, threads=1)

    return read_from("a/1.png", data, read)


def saved(save: Callable[..., object], *arguments: object, **options: object) -> bytes:
    """What ``save`` writes to a file."""
    stream = io.BytesIO()
    save(stream, *arguments, **options)
    return stream.getvalue()


MOST_SAMPLES = 64
IMAGES = np.arange(3 * 8 * 6, dtype=np.uint8).reshape(3, 8, 6)
LABELS_NPY = saved(np.save, np.arange(3))
LABELS_IDX = struct.pack(">II", 0x801, 3) + bytes(range(3))
IMAGES_IDX = struct.pack(">IIII", 0x803, *IMAGES.shape) + IMAGES.tobytes()
ARRAYS = {"x": IMAGES, "y": np.arange(3)}
PICTURE = Image.fromarray(IMAGES[0])
PNGS = tuple(saved(PICTURE.convert(mode).save, "PNG") for mode in ("L", "RGBA", "P", "1"))
JPEGS = tuple(saved(PICTURE.convert("RGB").save, "JPEG", progressive=progressive) for progressive in (False, True))
KINDS = (
    b"model.safetensors\n" + WHOLE,
    b"a.zip\n" + saved(np.savez, **ARRAYS),
    b"a.pkl\n" + pickle.dumps(STATE["bias"].tolist(), 0),
    b"README.md\n# A model\n",
    b"card\n<!DOCTYPE html>\n",
)
MAGIC = (
    b"PK\1\2",
    b"PK\3\4",
    b"PK\5\6",
    b"PK\6\6",
    b"PK\6\7",
    b"\x80\4",
    b"cos\nsystem\n",
    b"\x89HDF\r\n\x1a\n",
    b"#!/bin/sh",
)
SIZES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1\0\0", b"\x80\0\0\0\0\0\0\0")
HEADERS = (
    b"'|O'",
    b"'<f8'",
    b"'<c16'",
    b"(3, 8, 6)",
    b"(3, 8, 6, 3)",
    b"(1048576, 64, 64)",
    b"(-1,)",
    b"True",
    b"(" * 999,
)
CHUNKS = (b"IDAT", b"IHDR", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"acTL", b"fdAT", b"IEND")
SEGMENTS = (
    b"\xff\xda",
    b"\xff\xc4",
    b"\xff\xdb",
    b"\xff\xc2",
    b"\xff\xe2",
    b"\xff\xfe",
    b"\xff\xd9",
    b"\xff\xff",
    b"\xff\xdd",
)

TARGETS = {
    "header": Target(
        run_header, (b"w" + WHOLE, b"h" + HEADER), (*WORDS, b"__metadata__", b"data_offsets", b"shape", b"F32", b"BF16")
    ),
    "policy": Target(
        run_policy, (TEMPLATE.encode(), SMALL, SETTINGS), (*WORDS, b"threshold", b"min_samples", b"sanitize.settings")
    ),
    "signature": Target(
        run_signature,
        (b"b" + SIGNATURE, b"s" + STATEMENT, b"c" + CERTIFICATE),
        (*WORDS, b"..", b"/", b'"sha256"', b"AAAA", b"rawBytes"),
    ),
    "config": Target(
        run_config,
        (DESCRIPTION, VIT),
        (*WORDS, b'"auto_map":', b'"depths":', b"small_vgg", b"resnet"),
    ),
    "kind": Target(run_kind, KINDS, (*MAGIC, *SIZES, *MARKS)),
    "npz": Target(
        run_npz,
        (b"w" + saved(np.savez, **ARRAYS), b"w" + saved(np.savez_compressed, **ARRAYS), b"a" + saved(np.save, IMAGES)),
        (*MAGIC, *SIZES, *HEADERS, *NUMBERS),
    ),
    "idx": Target(
        run_idx, (b"w" + IMAGES_IDX, b"z" + IMAGES_IDX, b"w" + gzip.compress(IMAGES_IDX)), (*SIZES, b"\x1f\x8b\x08")
    ),
    "image": Target(run_image, (*PNGS, *JPEGS), (*SIZES, *CHUNKS, *SEGMENTS)),
}
