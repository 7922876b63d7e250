"""Pulling under a policy: what has to be signed is, by whom and for what, or nothing of it comes here."""

import json

import pytest
from cowshed_testing.fake_registry import MANIFEST, send
from cowshed_testing.images import ARCHITECTURE, digest
from cowshed_testing.samples import small
from cowshed_testing.signing import EMPTY, Signer, referring, requirement, tagged, text

from cowshed import digests
from cowshed.errors import ConfigError, CowshedError, RegistryError, Tampered, Untrusted
from cowshed.image import reference
from cowshed.image.archives import Archives
from cowshed.image.pull import pull_all
from cowshed.state import images, origins, records
from cowshed.trust import policy
from cowshed.trust.gate import Gate

INDEX = "application/vnd.oci.image.index.v1+json"
REJECT, ACCEPT = {"type": "reject"}, {"type": "insecureAcceptAnything"}


@pytest.fixture
def signer(tmp_path):
    it = Signer()
    (tmp_path / "k.pub").write_bytes(it.public)
    return it


@pytest.fixture
def gated(store, fake, tmp_path):
    """Sets the requirements for the fake registry; everything else is rejected."""

    def set_(*requirements, local=REJECT):
        value = {"default": [REJECT], "transports": {"docker": {fake.address: requirements}, "cowshed": {"": [local]}}}
        store.gate = Gate(policy.parse(json.dumps(value).encode(), "/p.json"))

    set_(requirement(f"{tmp_path}/k.pub"))
    return set_


@pytest.fixture
def image(fake):
    it = small()
    fake.add(it)
    return it


@pytest.fixture
def name(fake):
    return f"{fake.address}/a/b:latest"


def use(store, pulled, said="it"):
    return store.gate.using(store.store, pulled.image, said)


def test_by_tag_form(gated, store, fake, signer, image, name, tmp_path):
    before = store.contents()
    with pytest.raises(
        Untrusted, match=f"^{name} is not accepted: it has no signature .scope {fake.address} of docker"
    ):
        store.pull(name)
    assert store.contents() == before
    assert not [r for r in fake.requests if "/blobs/" in r.path and image.id not in r.path]
    tagged(fake, image.digest, signer.simple(image.digest, f"{fake.address}/a/b"))
    pulled = store.pull(name)
    count = len(fake.requests)
    rule, (claim,) = use(store, pulled)
    assert (claim.identity, claim.key) == (f"{fake.address}/a/b", f"{tmp_path}/k.pub")
    assert rule.scope == f"scope {fake.address} of docker"
    assert len(fake.requests) == count


@pytest.mark.parametrize("said", ["application/vnd.dev.sigstore.bundle.v0.3+json", EMPTY, ""])
@pytest.mark.parametrize("api", [True, False])
def test_by_bundle(gated, store, fake, signer, image, name, tmp_path, api, said):
    fake.referrers = {} if api else None
    referring(fake, image.digest, signer.bundle(image.digest), said=said)
    with pytest.raises(Untrusted, match="a signature is for no name, which matchRepository does not take"):
        store.pull(name)
    gated(requirement(f"{tmp_path}/k.pub", identity="matchAny"))
    _, (claim,) = use(store, store.pull(name))
    assert (claim.form, claim.digests) == ("bundle", (image.digest,))


def test_a_fallback_index_beside_an_api_that_knows_nothing_of_it(gated, store, fake, signer, image, name, tmp_path):
    """A registry that has got the API since the image was signed."""
    referring(fake, image.digest, signer.bundle(image.digest))
    fake.referrers = {}
    gated(requirement(f"{tmp_path}/k.pub", identity="matchAny"))
    store.pull(name)


@pytest.mark.parametrize("which", ["index", "manifest"])
@pytest.mark.parametrize("form", ["simple", "bundle"])
def test_the_index_or_the_manifest_may_be_signed(gated, store, fake, signer, image, name, tmp_path, which, form):
    entry = {"mediaType": MANIFEST, "digest": image.digest,
             "size": len(image.manifest), "platform": {"os": "linux", "architecture": ARCHITECTURE}}  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    for key in ("latest", digest(index)):
        fake.put(key, index, INDEX)
    subject = digest(index) if which == "index" else image.digest
    gated(requirement(f"{tmp_path}/k.pub", identity="matchAny"))
    if form == "simple":
        tagged(fake, subject, signer.simple(subject, name))
    else:
        referring(fake, subject, signer.bundle(subject))
    pulled = store.pull(name)
    _, (claim,) = use(store, pulled)
    assert claim.digests == (subject,)


def test_all_platforms_are_judged_one_by_one(gated, store, fake, signer, image, name):
    second = small(WorkingDir="/second")
    fake.add(second, "second")
    entries = [
        {"mediaType": MANIFEST, "digest": each.digest, "size": len(each.manifest),
         "platform": {"os": "linux", "architecture": ARCHITECTURE}}
        for each in (image, second)
    ]  # fmt: skip
    fake.put("latest", {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)

    def pulled():
        return pull_all(store.layers, reference.parse(name), registries={}, durability="none", progress=store.told,
                        gate=store.gate)  # fmt: skip

    tagged(fake, image.digest, signer.simple(image.digest, name))
    with pytest.raises(Untrusted, match="it has no signature"):
        pulled()
    assert store.query("select id from images") == [(image.id,)]
    tagged(fake, second.digest, signer.simple(second.digest, name))
    assert [use(store, each)[1][0].digests for each in pulled()] == [(image.digest,), (second.digest,)]


def refused(store, name, why):
    before = store.contents()
    with pytest.raises(CowshedError, match=why) as caught:
        store.pull(name)
    assert isinstance(caught.value, (Untrusted, ConfigError))
    assert "\n" not in str(caught.value)
    assert store.contents() == before


def test_a_signature_that_is_not_for_this(gated, store, fake, signer, image, name):
    there = f"{fake.address}/a/b"
    other = "sha256:" + "1" * 64
    for made, why in (
        (Signer().simple(image.digest, there), "a signature is not of the key that is asked for"),
        (signer.simple(other, there), "a signature is for another image"),
        (signer.simple(image.digest, f"{fake.address}/a/c"), "/a/c', which matchRepository does not take"),
        (signer.simple(image.digest, ""), "is for no name"),
    ):
        tagged(fake, image.digest, made)
        refused(store, name, why)
    tagged(fake, image.digest, *[Signer().simple(image.digest, there)] * 3, signer.simple(image.digest, there))
    store.pull(name)


def test_every_requirement_has_to_be_met(gated, store, fake, signer, image, name, tmp_path):
    second = Signer("ed25519")
    (tmp_path / "second.pub").write_bytes(second.public)
    data = {"type": "sigstoreSigned", "keyData": text(second.public), "signedIdentity": {"type": "matchRepository"}}
    gated(ACCEPT, requirement(f"{tmp_path}/k.pub"), data)
    there = f"{fake.address}/a/b"
    tagged(fake, image.digest, signer.simple(image.digest, there))
    refused(store, name, "is not of the key")
    tagged(fake, image.digest, signer.simple(image.digest, there), second.simple(image.digest, there))
    assert [claim.key for claim in use(store, store.pull(name))[1]] == [f"{tmp_path}/k.pub", "the key in the policy"]
    gated(requirement(f"{tmp_path}/k.pub"), REJECT)
    refused(store, name, "it is rejected")


def test_any_of_several_keys_will_do(gated, store, fake, signer, image, name, tmp_path):
    (tmp_path / "second.pub").write_bytes(Signer().public)
    tagged(fake, image.digest, signer.simple(image.digest, name))
    gated(requirement(f"{tmp_path}/second.pub", f"{tmp_path}/k.pub"))
    store.pull(name)


def test_keys_that_cannot_be_read(gated, store, fake, signer, image, name, tmp_path):
    tagged(fake, image.digest, signer.simple(image.digest, name))
    (tmp_path / "bad.pub").write_text("-----BEGIN RSA PRIVATE KEY-----")
    for bad, why in (("none.pub", "cannot be read"), ("bad.pub", "is no public key")):
        gated(requirement(f"{tmp_path}/k.pub", f"{tmp_path}/{bad}"))
        refused(store, name, why)


def test_what_is_rejected_is_not_even_asked_for(gated, store, fake, image, name):
    for given, why in ((REJECT, "it is rejected"), ({"type": "signedBy"}, "GPG"),
                       ({"type": "sigstoreSigned", "fulcio": {}}, "fulcio")):  # fmt: skip
        gated(given)
        refused(store, name, why)
        with pytest.raises(Untrusted, match=why):
            pull_all(store.layers, reference.parse(name), registries={}, durability="none", progress=store.told,
                     gate=store.gate)  # fmt: skip
    assert fake.requests == []


def test_what_is_accepted_is_not_asked_for_signatures(gated, store, fake, image, name):
    gated(ACCEPT)
    store.pull(name)
    assert [r.path for r in fake.requests if "sha256-" in r.path or "/referrers/" in r.path] == []


def test_a_registry_that_fails_while_signatures_are_looked_for(gated, store, fake, signer, image, name):
    """It is told, and it is no reason to accept; what was found elsewhere counts."""
    broken = []

    def answer(request, handler):
        if any(part in request.path for part in broken):
            send(handler, 403, b"{}")
            return True
        return False

    fake.answer = answer
    broken[:] = [".sig", "/referrers/"]
    refused(store, name, r"it has no signature \(.*Forbidden")
    tagged(fake, image.digest, signer.simple(image.digest, name))
    refused(store, name, r"it has no signature \(.*Forbidden")
    broken[:] = ["/referrers/"]
    store.pull(name)


def test_nonsense_in_the_place_of_signatures(gated, store, fake, signer, image, name):
    for nonsense in (b"[]", b"{", b'{"layers": 7}', b'{"layers": [7, null, {}]}', b"{}" * 10):
        fake.referrers = {image.digest: [7, {}, {"digest": "x"}, {"digest": "sha256:" + "0" * 64, "size": 5}]}
        fake.put(f"{image.digest.replace(':', '-')}.sig", nonsense)
        refused(store, name, "it has no signature")
        fake.referrers = None
        fake.put(image.digest.replace(":", "-"), nonsense, INDEX)
        refused(store, name, "it has no signature")


def test_other_bytes_than_the_signature_is_named_for(gated, store, fake, signer, image, name):
    body, made = signer.simple(image.digest, name)
    tagged(fake, image.digest, (body, made))
    fake.blobs[digest(body)] = body[:-1] + b" "
    refused(store, name, "it has no signature .what the registry sends")
    manifest = json.loads(fake.manifests[f"{image.digest.replace(':', '-')}.sig"][0])
    named = f"blake3:{digests.new('blake3', body).hexdigest()}"
    manifest["layers"][0]["digest"] = named
    fake.put(f"{image.digest.replace(':', '-')}.sig", manifest)
    fake.blobs[named] = body[:-1] + b" "
    refused(store, name, "it has no signature .what the registry sends")
    fake.blobs[named] = body
    store.pull(name)
    manifest["layers"][0]["annotations"] = {}
    fake.put(f"{image.digest.replace(':', '-')}.sig", manifest)
    refused(store, name, "it has no signature")


def test_there_is_a_limit_to_what_is_looked_at(gated, store, fake, signer, image, name, tmp_path):
    """What a registry hides behind too much it has not shown; what it shows counts, whatever is behind."""
    good, bad = signer.simple(image.digest, name), [Signer().simple(image.digest, f"{name}{n}") for n in range(3)] * 24
    tagged(fake, image.digest, *bad, good)
    refused(store, name, "is not of the key")
    huge = signer.simple(image.digest, name, padding="x" * (64 << 10))
    tagged(fake, image.digest, huge)
    refused(store, name, "it has no signature")
    gated(requirement(f"{tmp_path}/k.pub", identity="matchAny"))
    large = signer.bundle(image.digest, padding="x" * 140_000)
    others = [Signer().bundle(image.digest, padding=f"{n:140000}") for n in range(9)]
    referring(fake, image.digest, large, *others)
    assert len(use(store, store.pull(name))[1]) == 1
    referring(fake, image.digest, *others, large)
    refused(store, name, "there are too many signatures")
    tagged(fake, image.digest, good, *bad)
    store.pull(name)


def test_a_registry_that_has_another_image_once_the_first_was_judged(gated, store, fake, signer, image, name):
    """What was judged is what comes: a tag is asked for once, and all below it by digest."""
    evil = small(Cmd=["evil"])
    tagged(fake, image.digest, signer.simple(image.digest, name))

    def answer(request, handler):
        if request.path.endswith(".sig"):
            fake.add(evil)
        return False

    fake.answer = answer
    assert store.pull(name).image.id == image.id
    refused(store, name, "it has no signature")
    fake.answer = lambda request, handler: False
    fake.add(image)
    for digest_ in image.blobs:  # a signature holds for every byte below the manifest
        other = bytes([fake.blobs[digest_][0] ^ 1]) + fake.blobs[digest_][1:]
        good, fake.blobs[digest_] = fake.blobs[digest_], other
        with store.store.transaction() as tx:
            images.delete(tx, image.id)
        store.layers.remove_unreferenced()
        Archives(store.store).collect(store.store)
        with pytest.raises(Tampered):
            store.pull(name)
        assert images.exact(store.store, image.id) is None
        fake.blobs[digest_] = good


def test_from_a_mirror(gated, store, fake, other, signer, tmp_path):
    """The name is what counts; the mirror, and what it has of signatures, is taken as evidence and not more."""
    image, name = small(), "registry.example/a/b:latest"
    value = {"default": [REJECT], "transports": {"docker": {"registry.example": [requirement(f"{tmp_path}/k.pub")]}}}
    store.gate = Gate(policy.parse(json.dumps(value).encode(), "/p.json"))
    store.registries = {"registry.example": {"mirrors": [f"http://{fake.address}", f"http://{other.address}"],
                                             "fallback": False}}  # fmt: skip
    fake.add(image)
    other.add(image)
    refused(store, name, "it has no signature")
    tagged(other, image.digest, signer.simple(image.digest, f"{fake.address}/a/b"))
    refused(store, name, "which matchRepository does not take")
    tagged(other, image.digest, signer.simple(image.digest, "registry.example/a/b"))
    store.pull(name)


def test_the_policy_of_today_counts_for_what_is_here(gated, store, fake, signer, image, name, tmp_path):
    tagged(fake, image.digest, signer.simple(image.digest, name))
    pulled = store.pull(name)
    fake.manifests.clear()
    use(store, pulled)
    gated(requirement(f"{tmp_path}/k.pub", identity="matchExact"))
    use(store, pulled)
    gated(requirement(f"{tmp_path}/k.pub", identity={"type": "exactRepository", "dockerRepository": "a/b"}))
    with pytest.raises(Untrusted, match="exactRepository does not take"):
        use(store, pulled)
    (tmp_path / "k.pub").write_bytes(Signer().public)
    gated(requirement(f"{tmp_path}/k.pub"))
    with pytest.raises(Untrusted, match="is not of the key"):
        use(store, pulled)
    (tmp_path / "k.pub").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        use(store, pulled)
    gated(REJECT)
    with pytest.raises(Untrusted, match="it is rejected"):
        use(store, pulled)


def test_what_was_pulled_without_a_policy_is_judged_by_where_it_came_from(gated, store, fake, signer, image, name):
    gate, store.gate = store.gate, None
    pulled = store.pull(name)
    with store.store.transaction() as tx:
        images.tag(tx, "elsewhere.example/x:1", image.id)
    store.gate = gate
    with pytest.raises(Untrusted, match=f"^{name} is not accepted: it has no signature"):
        use(store, pulled, "elsewhere.example/x:1")
    tagged(fake, image.digest, signer.simple(image.digest, name))
    use(store, store.pull(name))
    store.gate = None
    store.pull(name)  # brings no signatures, and takes none away
    store.gate = gate
    use(store, pulled)


def test_one_origin_that_is_accepted_is_enough(gated, store, fake, other, signer, image, name, tmp_path):
    """It is the same image, wherever it came from."""
    other.add(image)
    store.gate, gate = None, store.gate
    pulled = store.pull(f"{other.address}/x/y")
    store.gate = gate
    with pytest.raises(Untrusted, match="it is rejected"):
        use(store, pulled)
    tagged(fake, image.digest, signer.simple(image.digest, name))
    pulled = store.pull(name)
    use(store, pulled)
    assert len(origins.of(store.store, image.id)) == 2
    with store.store.transaction() as tx:
        images.delete(tx, image.id)
    assert store.query("select count(*) from origins") == [(0,)]


def test_local_images(gated, store, tmp_path):
    small().write_layout(f"{tmp_path}/layout", "r.example/x:1")
    (loaded,) = store.load(f"{tmp_path}/layout")
    with pytest.raises(Untrusted, match=r"^it is not accepted: it is rejected .scope of all of cowshed"):
        use(store, loaded)
    gated(REJECT, local=requirement(f"{tmp_path}/k.pub"))
    with pytest.raises(Untrusted, match="no registry has brought it, so it has no signature"):
        use(store, loaded)
    gated(REJECT, local=ACCEPT)
    use(store, loaded)


def test_a_container_whose_image_is_gone(gated, store):
    gated(ACCEPT, local=ACCEPT)
    with pytest.raises(Untrusted, match="container x is not accepted: its image is gone"):
        store.gate.without_image("container x")


def test_origins_are_in_the_records(gated, store, fake, signer, image, name):
    """A database that is made again out of them judges no milder."""
    tagged(fake, image.digest, signer.simple(image.digest, name))
    store.pull(name)
    known = origins.of(store.store, image.id)
    written = records.read(records.path(store.root, "images", image.id))
    with store.store.transaction() as tx:
        tx.execute("delete from origins")
        origins.restore(tx, image.id, written["origins"])
    assert origins.of(store.store, image.id) == known != []


def test_a_client_lists_what_all_places_know(fake, other, no_credentials):
    from cowshed.registry.client import Client

    subject = "sha256:" + "2" * 64
    fake.referrers = {subject: [{"digest": "a"}]}
    other.referrers = {subject: [{"digest": "b"}, {"digest": "a"}]}
    mirrors = {"mirrors": [f"http://{fake.address}", f"http://{other.address}"], "fallback": False}
    with Client("r.example", "a/b", mirrors, pause=0) as client:
        assert [entry["digest"] for entry in client.referrers(subject)] == ["a", "b"]
        fake.answer = other.answer = lambda request, handler: send(handler, 500) or True
        with pytest.raises(RegistryError):
            client.referrers(subject)
