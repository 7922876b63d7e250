"""The policy file: which scope counts, which names a signature may be for, and that nothing is accepted by mistake."""

import json

import pytest

from cowshed.errors import ConfigError
from cowshed.image import reference
from cowshed.trust import policy
from cowshed.trust.policy import Identity

ACCEPT, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}
SIGNED = {"type": "sigstoreSigned", "keyPath": "/k.pub"}


def parsed(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return policy.parse(data, "/p.json")


def scoped(*scopes, transport="docker", default=REJECT):
    return parsed({"default": [default], "transports": {transport: {scope: [ACCEPT] for scope in scopes}}})


@pytest.mark.parametrize(("image", "scopes"), [
    ("a.example.com:5000/x/y:1",
     ["a.example.com:5000/x/y:1", "a.example.com:5000/x/y", "a.example.com:5000/x", "a.example.com:5000",
      "*.example.com", "*.com", ""]),
    ("busybox", ["docker.io/library/busybox:latest", "docker.io/library/busybox", "docker.io/library", "docker.io",
                 "*.io", ""]),
    ("localhost/x@sha256:" + "0" * 64, ["localhost/x@sha256:" + "0" * 64, "localhost/x", "localhost", ""]),
])  # fmt: skip
def test_the_scopes_of_an_image_are_those_of_containers_image(image, scopes):
    assert [scope for scope in policy.scopes(reference.parse(image)) if ":443" not in scope] == scopes


def test_the_most_specific_scope_counts():
    image = reference.parse("a.example.com/x/y:1")
    every = policy.scopes(image)
    for n, scope in enumerate(every):
        rule = scoped(*every[n:]).of(image)
        assert rule.scope == f"scope {scope or 'of all'} of docker"
        assert rule.requirements[0].kind == policy.ACCEPT
    for near in ("a.example.com/x/y:2", "a.example.com/x/yy", "example.com", "a.example.com:80", "*.b.com"):
        assert scoped(near).of(image).scope == "the default"


def test_a_host_is_the_same_however_it_is_written():
    image = reference.parse("Registry.Example:5000/team/app:V1")
    for scope in ("registry.example:5000/team/app:V1", "REGISTRY.example:5000/team", "*.Example"):
        assert scoped(scope).of(image).requirements[0].kind == policy.ACCEPT
    for one, other in (("r.example/x", "R.example/x"), ("r.example:80/x", "r.example:0080/x")):
        with pytest.raises(ConfigError, match=rf"has the scope '{one}' twice"):
            scoped(one, other)


@pytest.mark.parametrize(("scope", "image"), [
    ("r.example/team", "r.example:443/team/app"), ("r.example/team/app:1", "R.example:0443/team/app:1"),
    ("r.example:443", "r.example/team/app"), ("r.example:443/team/app:1", "r.example/team/app:1"),
    ("r.example:5000", "r.example:05000/team/app"), ("r.example:0005000/team", "r.example:5000/team/app"),
    ("[::1]", "[::1]:443/app"), ("[::1]:443", "[::1]/app"), ("[::1]:7", "[0:0::0001]:07/app"),
    ("127.0.0.1:7", "127.1:7/app"), ("0x7f.1:7", "[::ffff:7f00:1]:7/app"), ("127.0.0.1:7", "2130706433:7/app"),
    ("docker.io", "INDEX.docker.io/library/busybox"), ("docker.io/library/busybox", "Docker.IO/busybox"),
    ("docker.io", "registry-1.docker.io:443/library/busybox"), ("index.docker.io/library", "busybox"),
    ("docker.io", "docker.io:443/library/busybox"),
])  # fmt: skip
def test_no_spelling_of_a_host_gets_around_a_scope(scope, image):
    value = {"default": [ACCEPT], "transports": {"docker": {scope: [REJECT]}}}
    assert parsed(value).of(reference.parse(image)).requirements[0].kind == policy.REJECT


@pytest.mark.parametrize("scope", [
    "r.example/", "/", "/x", "https://r.example", "r.example//x", "r.example/Team", "r.example/x:", "r.example/x@1",
    "busybox", "library/busybox", "docker.io/busybox:1", f"r.example/x:1@sha256:{'0' * 64}", "*", "*.", "*.r.example:5",
    "*.r.example/x", "r.*.example", "r.example:x", "r.example:99999", "r.example /x", " ", "r.example/x ", "r..example",
    "[::1", "r.example:443:443",
])  # fmt: skip
def test_a_scope_that_no_image_can_be_in_is_told(scope):
    """What it asks for would hold for nothing, and its author would not know."""
    with pytest.raises(ConfigError, match="which no image can be in: a scope is HOST"):
        scoped(scope)
    scoped(scope, transport="docker-daemon")  # others have their own scopes


def test_local_images_have_a_transport_of_their_own():
    assert scoped("").of_local.requirements[0].kind == policy.REJECT
    assert scoped("", transport="cowshed").of_local.requirements[0].kind == policy.ACCEPT
    image = reference.parse("a/b")
    assert scoped("", transport="cowshed").of(image).requirements[0].kind == policy.REJECT


def test_what_accepts_everything_is_known():
    assert scoped("x.example", default=ACCEPT).accepts_all
    assert not scoped("x.example").accepts_all
    for transport in ("docker", "cowshed"):
        assert not parsed({"default": [ACCEPT], "transports": {transport: {"": [SIGNED]}}}).accepts_all
    assert parsed({"default": [ACCEPT], "transports": {"docker-daemon": {"": [REJECT]}}}).accepts_all


@pytest.mark.parametrize(("given", "expected"), [
    ({"keyPath": "/a"}, (("/a",), ())),
    ({"keyPaths": ["/a", "/b"]}, (("/a", "/b"), ())),
    ({"keyData": "eA=="}, ((), (b"x",))),
    ({"keyDatas": ["eA==", "eQ=="]}, ((), (b"x", b"y"))),
])  # fmt: skip
def test_keys(given, expected):
    (found,) = parsed({"default": [{"type": "sigstoreSigned", **given}]}).default
    assert (found.kind, found.paths, found.data, found.identity.type) == (
        policy.SIGNED, *expected, "matchRepoDigestOrExact"
    )  # fmt: skip


@pytest.mark.parametrize(("given", "word"), [
    ({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}, "GPG"),
    ({"type": "sigstoreSigned", "fulcio": {}}, "fulcio"),
    ({"type": "sigstoreSigned", "pki": {}}, "public key infrastructure"),
    ({**SIGNED, "rekorPublicKeyPath": "/r"}, "rekor"),
    ({**SIGNED, "rekorPublicKeyDatas": ["eA=="]}, "rekor"),
])  # fmt: skip
def test_what_cannot_be_verified_is_a_requirement_that_nothing_meets(given, word):
    (found,) = parsed({"default": [given]}).default
    assert found.kind == policy.UNVERIFIABLE
    assert word in found.why


WRONG = {
    "no JSON": b"{",
    "bytes that are no text": b'{"default": [{"type": "insecureAcceptAnything\xff"}]}',
    "nothing": b"",
    "a list": [],
    "no default": {"transports": {}},
    "an empty default": {"default": []},
    "a default that is none": {"default": ACCEPT},
    "another name": {"default": [ACCEPT], "Default": [REJECT]},
    "a name twice": b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
    "a name twice within": b'{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
    "an unknown type": {"default": [{"type": "acceptAnything"}]},
    "no type": {"default": [{}]},
    "a type that is a list": {"default": [{"type": ["reject"]}]},
    "a requirement that is text": {"default": ["reject"]},
    "more than a type": {"default": [{**ACCEPT, "keyPath": "/k"}]},
    "transports that are a list": {"default": [ACCEPT], "transports": []},
    "a transport that is a list": {"default": [ACCEPT], "transports": {"docker": []}},
    "an empty scope": {"default": [ACCEPT], "transports": {"docker": {"x.example": []}}},
    "a wrong scope of another transport": {"default": [ACCEPT], "transports": {"dir": {"/x": [{"type": "x"}]}}},
    "no key": {"default": [{"type": "sigstoreSigned"}]},
    "two keys": {"default": [{**SIGNED, "keyData": "eA=="}]},
    "no paths": {"default": [{"type": "sigstoreSigned", "keyPaths": []}]},
    "a path that is a number": {"default": [{"type": "sigstoreSigned", "keyPath": 1}]},
    "an empty path": {"default": [{"type": "sigstoreSigned", "keyPath": ""}]},
    "a relative path": {"default": [{"type": "sigstoreSigned", "keyPath": "k.pub"}]},
    "a path that is none": {"default": [{"type": "sigstoreSigned", "keyPaths": ["/k", "/k\0"]}]},
    "a path in half a character": {"default": [{"type": "sigstoreSigned", "keyPath": "/\ud800"}]},
    "data that is no base64": {"default": [{"type": "sigstoreSigned", "keyData": "!"}]},
    "an unknown setting": {"default": [{**SIGNED, "keypath": "/k"}]},
    "an unknown identity": {"default": [{**SIGNED, "signedIdentity": {"type": "matchNothing"}}]},
    "an identity that is text": {"default": [{**SIGNED, "signedIdentity": "matchExact"}]},
    "an identity with more": {"default": [{**SIGNED, "signedIdentity": {"type": "matchExact", "prefix": "a"}}]},
    "an identity with less": {"default": [{**SIGNED, "signedIdentity": {"type": "exactRepository"}}]},
    "an identity that is no name": {
        "default": [{**SIGNED, "signedIdentity": {"type": "exactRepository", "dockerRepository": "A B"}}]
    },
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_a_file_that_is_not_wholly_understood_accepts_nothing(value):
    with pytest.raises(ConfigError, match=r"^no image is accepted, because of the policy file /p.json: ."):
        parsed(value)


def test_a_file_that_cannot_be_read_accepts_nothing(tmp_path):
    (tmp_path / "huge").write_bytes(b" " * ((1 << 20) + 1))
    (tmp_path / "loop").symlink_to("loop")
    for name in ("none", "loop", "huge", "."):
        with pytest.raises(ConfigError, match="no image is accepted"):
            policy.read(str(tmp_path / name))


D = "sha256:" + "a" * 64
TAG, DIGEST = "r.example/team/app:1", f"r.example/team/app@{D}"
REPOSITORY = "r.example/team/app"
# identity -> the names that it takes for an image by tag, by digest
TAKEN = {
    ("matchExact",): ({TAG}, {DIGEST}),
    ("matchRepoDigestOrExact",): ({TAG}, {TAG, DIGEST, f"{REPOSITORY}:2", f"{REPOSITORY}@sha256:{'b' * 64}"}),
    ("matchRepository",): ({TAG, DIGEST, REPOSITORY, f"{REPOSITORY}:2", f"{REPOSITORY}@sha256:{'b' * 64}"},) * 2,
    ("exactRepository", "r.example/other"): ({"r.example/other", "r.example/other:8", "r.example/other:9"},) * 2,
    ("exactReference", "r.example/other:9"): ({"r.example/other:9"},) * 2,
    ("exactReference", "r.example/other"): (set(),) * 2,
    ("remapIdentity", "r.example/team", "up.example/x"): ({"up.example/x/app:1"},
                                                          {"up.example/x/app:1", f"up.example/x/app@{D}"}),
    ("remapIdentity", "r.example/tea", "up.example/x"): ({TAG}, {TAG, DIGEST, f"{REPOSITORY}:2",
                                                                 f"{REPOSITORY}@sha256:{'b' * 64}"}),
}  # fmt: skip
SAID = {name for taken in TAKEN.values() for names in taken for name in names} | {
    "", " ", "A", "r.example", "r.example/other:8", "r.example/team/app2:1", "other.example/team/app:1",
}  # fmt: skip


@pytest.mark.parametrize("identity", TAKEN, ids=" ".join)
def test_the_names_that_a_signature_may_be_for(identity):
    rule = Identity(identity[0], identity[1:])
    for wanted, taken in zip((TAG, DIGEST), TAKEN[identity], strict=True):
        found = {said for said in SAID if policy.matches(rule, reference.parse(wanted), said)}
        assert found == taken


def test_a_signature_without_a_name_meets_one_rule_alone():
    for identity in [*TAKEN, ("matchAny",)]:
        for wanted in (TAG, DIGEST):
            taken = policy.matches(Identity(identity[0], identity[1:]), reference.parse(wanted), "")
            assert taken == (identity == ("matchAny",))
