"""Signs images as cosign does, with keys of every kind, and puts the signatures where cosign puts them."""

from __future__ import annotations

import base64
import functools
import hashlib
import json

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cowshed.image import reference
from cowshed.image.manifest import Descriptor
from cowshed.registry.repository import PUSH, Repository
from cowshed.trust.signature import BUNDLE_TYPE, SIMPLE_SIGNATURE, SIMPLE_TYPE

from .fake_registry import MANIFEST

EMPTY = "application/vnd.oci.empty.v1+json"
KINDS = ("p256", "p384", "rsa", "ed25519")


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Signer:
    """A key. kind: one of KINDS, or p521 and rsa1024, which are not accepted."""

    def __init__(self, kind: str = "p256") -> None:
        curves = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}
        if kind in curves:
            self._key = ec.generate_private_key(curves[kind]())
        elif kind == "ed25519":
            self._key = ed25519.Ed25519PrivateKey.generate()
        else:
            self._key = rsa.generate_private_key(65537, int(kind[3:] or 2048))

    @functools.cached_property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, data: bytes, hash_: hashes.HashAlgorithm | None = None) -> bytes:
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(data, ec.ECDSA(hash_ or hashes.SHA256()))

    def simple(self, of: str, name: str, **critical) -> tuple[bytes, bytes]:
        """(document, signature)"""
        said = {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": of},
                "type": "cosign container image signature", **critical}  # fmt: skip
        body = json.dumps({"critical": said, "optional": None}).encode()
        return body, self.sign(body)

    def bundle(self, of: str, **changes) -> bytes:
        algorithm, _, digits = of.partition(":")
        statement = {"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {algorithm: digits}}],
                     "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}, **changes}  # fmt: skip
        return self.envelope(json.dumps(statement).encode())

    def envelope(self, payload: bytes, kind: str = "application/vnd.in-toto+json") -> bytes:
        encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        return json.dumps({
            "mediaType": BUNDLE_TYPE, "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {"payload": text(payload), "payloadType": kind,
                             "signatures": [{"sig": text(self.sign(encoded))}]},
        }).encode()  # fmt: skip


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _manifest(blobs: dict[str, bytes], layers: list[dict], **more) -> bytes:
    blobs[digest(b"{}")] = b"{}"
    config = {"mediaType": EMPTY, "digest": digest(b"{}"), "size": 2}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}).encode()


def tagged(fake, subject: str, *signatures: tuple[bytes, bytes]) -> None:
    """Put simple signatures into a fake registry under the tag of a digest."""
    layers = []
    for body, signature in signatures:
        fake.blobs[digest(body)] = body
        layers.append({"mediaType": SIMPLE_TYPE, "digest": digest(body), "size": len(body),
                       "annotations": {SIMPLE_SIGNATURE: text(signature)}})  # fmt: skip
    fake.put(f"{subject.replace(':', '-')}.sig", _manifest(fake.blobs, layers))


def referring(fake, subject: str, *bundles: bytes, said: str = BUNDLE_TYPE) -> None:
    """Put bundles there as referrers of a digest: listed by the API if the registry has it, else under the fallback
    tag. said: what the listing calls their type."""
    entries = []
    for bundle in bundles:
        fake.blobs[digest(bundle)] = bundle
        layer = {"mediaType": BUNDLE_TYPE, "digest": digest(bundle), "size": len(bundle)}
        about = {"mediaType": MANIFEST, "digest": subject, "size": 1}
        data = _manifest(fake.blobs, [layer], subject=about, artifactType=BUNDLE_TYPE)
        fake.put(digest(data), data)
        entries.append({"mediaType": MANIFEST, "digest": digest(data), "size": len(data), "artifactType": said})
    if fake.referrers is not None:
        fake.referrers[subject] = entries
    else:
        index = "application/vnd.oci.image.index.v1+json"
        fake.put(subject.replace(":", "-"), {"schemaVersion": 2, "mediaType": index, "manifests": entries}, index)


def upload(name: str, *, signature: tuple[bytes, bytes] | None = None, bundle: bytes | None = None) -> None:
    """Put a signature of the image of that name into its registry, in the form of a tag or of a referrer."""
    parsed = reference.parse(name)
    with Repository(parsed.registry, parsed.repository, {}, actions=PUSH) as there:
        subject = there.head(parsed.wanted)
        assert subject is not None
        body, said, kind = (bundle, {}, BUNDLE_TYPE) if signature is None else (
            signature[0], {SIMPLE_SIGNATURE: text(signature[1])}, SIMPLE_TYPE
        )  # fmt: skip
        assert body is not None
        blobs: dict[str, bytes] = {digest(body): body}
        layer = {"mediaType": kind, "digest": digest(body), "size": len(body), "annotations": said}
        about = {"mediaType": MANIFEST, "digest": subject.digest, "size": subject.size}
        more = {} if signature is not None else {"subject": about, "artifactType": BUNDLE_TYPE}
        manifest = _manifest(blobs, [layer], **more)
        for each, data in blobs.items():
            there.send(Descriptor(each, len(data), ""), lambda offset, data=data: iter((data[offset:],)))
        there.put_manifest(manifest, MANIFEST, tag=f"{subject.digest.replace(':', '-')}.sig" if signature else "")


def requirement(*keys: str, identity: str | dict = "matchRepository") -> dict:
    return {"type": "sigstoreSigned", "keyPaths": list(keys),
            "signedIdentity": {"type": identity} if isinstance(identity, str) else identity}  # fmt: skip
