"""The signature of a model folder, as OpenSSF model signing 1.0 writes it with a key.

Source: OpenSSF model signing specification v1.0 (github.com/sigstore/model-transparency); Sigstore bundle v0.3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from seamfast.gating.provenance.dsse import STATEMENT_TYPE, envelope
from seamfast.gating.provenance.keys import SigningKey

FILE = "model.sig"
"""The signature of a folder, in it."""
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"


def model_signature(name: str, digests: Mapping[str, str], key: SigningKey) -> bytes:
    """A signature over the files of a folder, as ``model_signing verify key`` takes it.

    Args:
        name: of the folder; not compared by anyone.
        digests: SHA-256 by name, of each file in it but the signature.
        key: EC P-256; of an Ed25519 key, seamfast alone takes the signature.
    """
    names = sorted(digests)
    root = hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in names)).hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [FILE],
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names],
        },
    }
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.public.hint}, "tlogEntries": []},
        "dsseEnvelope": envelope(json.dumps(statement).encode(), key),
    }
    return (json.dumps(bundle, indent=2) + "\n").encode()
