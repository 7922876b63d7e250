"""Signatures of images, verified with public keys and nothing else: no network, no clock, no log of transparency.

Two forms, both of cosign. A *simple signature* signs a small JSON document which names a digest and a repository
(containers/image, docs/containers-signature.5, with cosign's type). A *bundle* (sigstore, version 0.3) holds a signed
envelope (DSSE) with an in-toto statement, whose subject is the digest; cosign writes no name in it.

What is said is believed only after the signature over its very bytes was found to be right.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64

from cowshed.errors import ConfigError
from cowshed.storage.record import record
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SIMPLE, BUNDLE = "simple", "bundle"  # forms
SIMPLE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_SIGNATURE = "dev.cosignproject.cosign/signature"  # annotation of a layer of that type
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_COSIGN = "cosign container image signature"
_LEAST_RSA = 2048
_KEY_LIMIT = 64 << 10


class BadSignature(Exception):
    """Why a signature does not count, in words that go behind "a signature"."""


@record(frozen=True)
class Evidence:
    """A signature as it was found."""

    form: str
    body: bytes  # the document that is signed; the whole bundle
    signature: bytes = b""  # of a document


@record(frozen=True)
class Claim:
    """What a signature that was verified says."""

    form: str
    digests: tuple[str, ...]  # of manifests or indexes
    identity: str  # the name it is for, "" if it has none
    key: str  # whose it is: where the key came from


class Key:
    """A public key: ECDSA on P-256 or P-384, RSA of 2048 bits or more (PKCS #1 v1.5), Ed25519."""

    def __init__(self, data: bytes, source: str) -> None:
        """data: PEM. source: what messages call it. ConfigError."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self.source = source
        if data.count(b"-----BEGIN ") > 1:  # of which the library would take the first
            raise ConfigError(f"{source} has more than one key, so no image is accepted that needs it",
                              remedy="name each by itself: keyPaths, keyDatas, --key")  # fmt: skip
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"{source} is no public key in PEM, so no image is accepted that needs it",
                              remedy="cosign public-key --key FILE writes one") from None  # fmt: skip
        is_curve = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1))
        is_rsa = isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA
        if not is_curve and not is_rsa and not isinstance(key, ed25519.Ed25519PublicKey):
            raise ConfigError(
                f"{source} is a key of a kind that is not used here, so no image is accepted that needs it",
                remedy="use ECDSA on P-256 or P-384, RSA of 2048 bits or more, or Ed25519",
            )
        self._key: Any = key

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's, over data. With P-384 sigstore has used SHA-256 and SHA-384."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
        from cryptography.hazmat.primitives.hashes import SHA256, SHA384

        ways: list[tuple[Any, ...]] = [()]
        if isinstance(self._key, ec.EllipticCurvePublicKey):
            hashes = (SHA256(), SHA384()) if self._key.curve.name == "secp384r1" else (SHA256(),)
            ways = [(ec.ECDSA(each),) for each in hashes]
        elif isinstance(self._key, rsa.RSAPublicKey):
            ways = [(padding.PKCS1v15(), SHA256())]
        for way in ways:
            try:
                self._key.verify(signature, data, *way)
            except InvalidSignature:
                continue
            return True
        return False


def key_file(path: str) -> Key:
    """The key in a file. ConfigError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_KEY_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"the key {path} cannot be read ({error.strerror}), so no image is accepted that needs it",
                          remedy="put it there, or correct the policy") from None  # fmt: skip
    return Key(data, path)


def verify(evidence: Evidence, keys: Sequence[Key]) -> Claim:
    """What a signature says, if one of the keys made it. BadSignature."""
    return _simple(evidence, keys) if evidence.form == SIMPLE else _bundle(evidence, keys)


def _signer(keys: Sequence[Key], data: bytes, signature: bytes) -> str:
    for key in keys:
        if key.verify(data, signature):
            return key.source
    raise BadSignature("is not of the key that is asked for")


def _simple(evidence: Evidence, keys: Sequence[Key]) -> Claim:
    signer = _signer(keys, evidence.body, evidence.signature)
    critical = _inner(_json(evidence.body, "signs"), "critical")
    if critical.get("type") != _COSIGN:
        raise BadSignature(f"is for something else: {str(critical.get('type'))[:100]!r}")
    digest = _inner(critical, "image").get("docker-manifest-digest")
    identity = _inner(critical, "identity").get("docker-reference")
    if not isinstance(digest, str) or not isinstance(identity, str):
        raise BadSignature("names no image")
    return Claim(SIMPLE, (digest,), identity, signer)


def _bundle(evidence: Evidence, keys: Sequence[Key]) -> Claim:
    bundle = _json(evidence.body, "is")
    if bundle.get("mediaType") != BUNDLE_TYPE:
        raise BadSignature(f"is a bundle of the unknown type {str(bundle.get('mediaType'))[:100]!r}")
    envelope = _inner(bundle, "dsseEnvelope")
    listed = envelope.get("signatures")
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], dict):
        raise BadSignature("is a bundle that has not one signature")
    kind, payload = envelope.get("payloadType"), decoded(envelope.get("payload"))
    if kind != _PAYLOAD_TYPE:
        raise BadSignature(f"is for something else: {str(kind)[:100]!r}")
    signer = _signer(keys, _encoded(payload), decoded(listed[0].get("sig")))
    statement = _json(payload, "signs")
    if statement.get("_type") not in _STATEMENTS or statement.get("predicateType") != _PREDICATE:
        raise BadSignature(f"is for something else: {str(statement.get('predicateType'))[:100]!r}")
    digests, names = [], set()
    subjects = statement.get("subject")
    for subject in subjects if isinstance(subjects, list) else ():
        if not isinstance(subject, dict):
            continue
        digests += [f"{name}:{digits}" for name, digits in _inner(subject, "digest").items()]
        name = subject.get("name")
        names.add(name if isinstance(name, str) else "")
    return Claim(BUNDLE, tuple(digests), names.pop() if len(names) == 1 else "", signer)


def _encoded(payload: bytes) -> bytes:
    """The bytes that an envelope's signature is over (DSSE, PAE)."""
    name = _PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def _json(data: bytes, verb: str) -> dict[str, Any]:
    """Of a name that is there twice, nobody can say what was meant."""
    try:
        value = loads(data, unique=True)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadSignature(f"{verb} no JSON document")
    return value


def _inner(value: dict[str, Any], name: str) -> dict[str, Any]:
    inner = value.get(name)
    if not isinstance(inner, dict):
        raise BadSignature(f"has no {name}")
    return inner


def decoded(value: Any) -> bytes:
    """The bytes of a text in base64. BadSignature."""
    try:
        if isinstance(value, str):
            return a2b_base64(value.encode(), strict_mode=True)
    except ValueError:
        pass
    raise BadSignature("is not in base64")


# ---------------------------------------------------------------- as it is kept


def pack(found: Sequence[Evidence]) -> list[list[str]]:
    """For JSON."""
    return [[each.form, _text(each.body), _text(each.signature)] for each in found]


def unpack(kept: Any) -> tuple[Evidence, ...]:
    """What `pack` made; what is damaged is left out, so that it proves nothing."""
    found = []
    for each in kept if isinstance(kept, list) else ():
        try:
            form, body, signature = each
            found.append(Evidence(form, a2b_base64(body, strict_mode=True), a2b_base64(signature, strict_mode=True)))
        except (ValueError, TypeError):
            continue
    return tuple(found)


def _text(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()
