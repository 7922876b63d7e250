"""Signatures of both forms, with keys of every kind, and whatever is not quite one."""

import json

import pytest
from cowshed_testing.signing import KINDS, Signer, text
from cryptography.hazmat.primitives import hashes

from cowshed.errors import ConfigError
from cowshed.trust import signature
from cowshed.trust.signature import BUNDLE, SIMPLE, BadSignature, Evidence, Key

D, NAME = "sha256:" + "a" * 64, "r.example/app"


@pytest.fixture(scope="module")
def signers():
    return {kind: Signer(kind) for kind in KINDS}


def key(signer, source="k.pub"):
    return Key(signer.public, source)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_every_kind_sign_both_forms(signers, kind):
    signer = signers[kind]
    keys = [key(each, name) for name, each in signers.items()]
    claim = signature.verify(Evidence(SIMPLE, *signer.simple(D, NAME)), keys)
    assert (claim.form, claim.digests, claim.identity, claim.key) == (SIMPLE, (D,), NAME, kind)
    claim = signature.verify(Evidence(BUNDLE, signer.bundle(D)), keys)
    assert (claim.form, claim.digests, claim.identity, claim.key) == (BUNDLE, (D,), "", kind)


def test_p384_with_its_own_hash(signers):
    body, _ = signers["p384"].simple(D, NAME)
    made = signers["p384"].sign(body, hashes.SHA384())
    assert signature.verify(Evidence(SIMPLE, body, made), [key(signers["p384"])]).digests == (D,)
    made = signers["p256"].sign(body, hashes.SHA384())
    with pytest.raises(BadSignature, match="is not of the key"):
        signature.verify(Evidence(SIMPLE, body, made), [key(signers["p256"])])


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_or_another_byte(signers, kind):
    signer = signers[kind]
    body, made = signer.simple(D, NAME)
    bundle = json.loads(signer.bundle(D))
    sig = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    bundle["dsseEnvelope"]["payload"] = text(b'{"x": 1}')
    for keys, evidence in (
        ([key(Signer(kind))], Evidence(SIMPLE, body, made)),
        ([key(Signer(kind))], Evidence(BUNDLE, signer.bundle(D))),
        ([], Evidence(SIMPLE, body, made)),
        ([key(signer)], Evidence(SIMPLE, body + b" ", made)),
        ([key(signer)], Evidence(SIMPLE, body, made[:-1] + bytes([made[-1] ^ 1]))),
        ([key(signer)], Evidence(SIMPLE, body, b"")),
        ([key(signer)], Evidence(BUNDLE, json.dumps(bundle).encode())),
    ):
        with pytest.raises(BadSignature, match="is not of the key"):
            signature.verify(evidence, keys)
    assert sig


@pytest.mark.parametrize("made", [
    b"", b"\0", b"\x30\x80", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\x30\x06\x02\x01\x01\x02\x01\x01",
    b"\x30\x84\xff\xff\xff\xff", b"\xff" * 4096, bytes(64), bytes(256),
])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_signature_at_all(signers, kind, made):
    """No DER, numbers that are zero, other lengths: not of the key, and no error of the library's."""
    with pytest.raises(BadSignature, match="is not of the key"):
        signature.verify(Evidence(SIMPLE, signers[kind].simple(D, NAME)[0], made), [key(signers[kind])])


@pytest.mark.parametrize(("change", "why"), [
    ({"type": "atomic container signature"}, "is for something else"),
    ({"type": None}, "is for something else"),
    ({"image": {}}, "names no image"),
    ({"image": None}, "has no image"),
    ({"image": {"docker-manifest-digest": [D]}}, "names no image"),
    ({"identity": {}}, "names no image"),
    ({"identity": {"docker-reference": None}}, "names no image"),
])  # fmt: skip
def test_a_document_that_does_not_say_what_it_has_to(signers, change, why):
    signer = signers["p256"]
    with pytest.raises(BadSignature, match=why):
        signature.verify(Evidence(SIMPLE, *signer.simple(D, NAME, **change)), [key(signer)])


def test_signed_bytes_that_are_no_document(signers):
    signer = signers["ed25519"]
    twice = b'{"critical": {}, "critical": {"type": "cosign container image signature"}}'
    for body in (b"", b"[]", b"{", b"\xff", twice, b"[" * 100_000):
        with pytest.raises(BadSignature, match="no JSON document"):
            signature.verify(Evidence(SIMPLE, body, signer.sign(body)), [key(signer)])
        with pytest.raises(BadSignature, match="no JSON document"):
            signature.verify(Evidence(BUNDLE, signer.envelope(body)), [key(signer)])


@pytest.mark.parametrize("change", [
    {"_type": "https://in-toto.io/Statement/v2"}, {"predicateType": "https://spdx.dev/Document"},
    {"predicateType": None}, {"_type": None},
])  # fmt: skip
def test_a_statement_about_something_else_is_no_signature(signers, change):
    """A bill of material or a bad scan that the same key has signed is no approval of the image."""
    with pytest.raises(BadSignature, match="is for something else"):
        signature.verify(Evidence(BUNDLE, signers["p256"].bundle(D, **change)), [key(signers["p256"])])


def test_an_envelope_of_another_type(signers):
    payload = json.dumps({"_type": "https://in-toto.io/Statement/v1"}).encode()
    with pytest.raises(BadSignature, match="is for something else"):
        signature.verify(Evidence(BUNDLE, signers["p256"].envelope(payload, "text/plain")), [key(signers["p256"])])


def test_subjects(signers):
    signer, other = signers["p256"], "sha256:" + "b" * 64
    both = [{"digest": {"sha256": "a" * 64}, "name": NAME}, {"digest": {"sha256": "b" * 64}, "name": NAME}, 7]
    claim = signature.verify(Evidence(BUNDLE, signer.bundle(D, subject=both)), [key(signer)])
    assert (claim.digests, claim.identity) == ((D, other), NAME)
    for name in ("r.example/else", ["x"], {}, None):
        both[1]["name"] = name
        assert signature.verify(Evidence(BUNDLE, signer.bundle(D, subject=both)), [key(signer)]).identity == ""
    for none in (None, [], {}, "x"):
        assert signature.verify(Evidence(BUNDLE, signer.bundle(D, subject=none)), [key(signer)]).digests == ()
    with pytest.raises(BadSignature, match="has no digest"):
        signature.verify(Evidence(BUNDLE, signer.bundle(D, subject=[{"digest": [D]}])), [key(signer)])


def test_bundles_that_are_none(signers):
    signer = signers["p256"]
    good = json.loads(signer.bundle(D))
    envelope = good["dsseEnvelope"]
    for change, why in (
        ({"mediaType": "application/vnd.dev.sigstore.bundle.v9+json"}, "of the unknown type"),
        ({"dsseEnvelope": None}, "has no dsseEnvelope"),
        ({"dsseEnvelope": {**envelope, "signatures": []}}, "has not one signature"),
        ({"dsseEnvelope": {**envelope, "signatures": envelope["signatures"] * 2}}, "has not one signature"),
        ({"dsseEnvelope": {**envelope, "signatures": ["x"]}}, "has not one signature"),
        ({"dsseEnvelope": {**envelope, "payload": "!"}}, "is not in base64"),
        ({"dsseEnvelope": {**envelope, "payload": None}}, "is not in base64"),
        ({"dsseEnvelope": {**envelope, "payloadType": "x"}}, "is for something else"),
        ({"dsseEnvelope": {**envelope, "payloadType": "\ud800"}}, "is for something else"),
        ({"dsseEnvelope": {**envelope, "payloadType": {}}}, "is for something else"),
        ({"dsseEnvelope": {**envelope, "payload": "\ud800"}}, "is not in base64"),
    ):
        with pytest.raises(BadSignature, match=why):
            signature.verify(Evidence(BUNDLE, json.dumps({**good, **change}).encode()), [key(signer)])


def test_keys_that_are_not_used(tmp_path):
    for kind in ("p521", "rsa1024"):
        with pytest.raises(ConfigError, match="is a key of a kind that is not used here"):
            key(Signer(kind))
    for data in (b"", b"x", Signer().public[:60], b"-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(ConfigError, match="is no public key"):
            Key(data, "k.pub")
    with pytest.raises(ConfigError, match=r"k.pub has more than one key"):
        Key(Signer().public + Signer().public, "k.pub")
    with pytest.raises(ConfigError, match=r"none.pub cannot be read \(No such file"):
        signature.key_file(str(tmp_path / "none.pub"))


def test_kept_signatures_that_are_damaged_prove_nothing(signers):
    found = (Evidence(SIMPLE, b"a", b"b"), Evidence(BUNDLE, b"c"))
    kept = signature.pack(found)
    assert signature.unpack(json.loads(json.dumps(kept))) == found
    assert signature.unpack([["simple", "!", "YQ=="], ["simple"], None, 7, ["simple", 1, 2], *kept]) == found
    assert signature.unpack(None) == signature.unpack({"a": 1}) == ()
