"""DSSE envelopes with one signature over an in-toto statement.

Source: Dead Simple Signing Envelope, protocol and envelope, v1.0.2 (github.com/secure-systems-lab/dsse).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from seamfast.gating.provenance.keys import SigningKey
from seamfast.untrusted import printable_value

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def pae(payload: bytes) -> bytes:
    """The bytes that are signed: ``DSSEv1``, lengths, the payload's type and the payload."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def envelope(payload: bytes, key: SigningKey) -> dict[str, Any]:
    """``payload`` with its signature.

    The identifier of the key is left empty, as cosign and OpenSSF model signing do: other identifiers make some
    verifiers skip the signature.
    """
    signature = key.sign(pae(payload))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }


def opened(document: Any) -> tuple[bytes, bytes]:
    """The payload of an envelope and its only signature, which is not verified here.

    Raises:
        ValueError: e.g. ``payloadType is 'text/plain'; expected 'application/vnd.in-toto+json'``.
    """
    if not isinstance(document, dict):
        raise ValueError(f"its envelope is {printable_value(document)}; expected an object")
    if document.get("payloadType") != PAYLOAD_TYPE:
        raise ValueError(f"payloadType is {printable_value(document.get('payloadType'))}; expected {PAYLOAD_TYPE!r}")
    signatures = document.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        found = f"{len(signatures)} signatures" if isinstance(signatures, list) else "no list of signatures"
        raise ValueError(f"it holds {found}; expected one")
    return _decoded("payload", document.get("payload")), _decoded("sig", signatures[0].get("sig"))


def _decoded(name: str, value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError(f"{name} is {printable_value(value)}; expected base64") from None
