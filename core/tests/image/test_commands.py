"""The commands of images from outside, as people and scripts use them."""

import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from cowshed_testing.fake_registry import MANIFEST, send
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.images import digest as digest_of
from cowshed_testing.samples import small, with_config

INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture
def three(fake, cowshed):
    """Three images: one and two have labels and times, three has no name."""

    def made(created, **config):
        return with_config(small(**config), lambda document: document.update(created=created))

    found = {}
    for name, created, config in (
        ("one", "2024-01-01T00:00:00Z", {"Labels": {"team": "a", "tier": "web"}}),
        ("two", "2025-01-01T00:00:00Z", {"Labels": {"team": "b"}}),
        ("three", "2026-01-01T00:00:00Z", {}),
    ):
        found[name] = made(created, **config)
        fake.add(found[name], name)
        cowshed("pull", "-q", f"{fake.address}/team/{name}:{name}")
    cowshed("untag", f"{fake.address}/team/three:three")
    return found


# ---------------------------------------------------------------- pull


def test_what_pull_says(fake, cowshed):
    image = small()
    fake.add(image)
    name = f"{fake.address}/a/b"
    first = cowshed("pull", name)
    assert first.stdout.splitlines() == [
        f"Digest: {image.digest}",
        f"Status: Downloaded newer image for {name}:latest",
        f"{name}:latest",
    ]
    said = first.stderr.splitlines()
    assert said[0] == f"{name}:latest: asking {fake.address}"
    assert [line[:12] for line in said[1:4]] == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3"]
    assert said[4].startswith("downloaded ")
    again = cowshed("pull", f"{name}:latest")
    assert f"Status: Image is up to date for {name}:latest" in again.stdout.splitlines()
    assert again.stderr.splitlines()[-1].endswith(" were here")
    quiet = cowshed("image", "pull", "-q", name)
    assert (quiet.stdout, quiet.stderr) == (f"{name}:latest\n", "")
    by_digest = cowshed("pull", f"{name}@{image.digest}")
    assert by_digest.stdout.splitlines()[-1] == f"{name}@{image.digest}"


def test_an_error_is_one_line(fake, cowshed):
    failed = cowshed("pull", f"{fake.address}/a/b:nothing", status=125)
    assert failed.stdout == ""
    assert failed.stderr.splitlines()[-1].startswith(f"cowshed: {fake.address}/a/b:nothing is not in the registry")
    failed = cowshed("pull", "Not/A/Name", status=125)
    assert failed.stderr.startswith("cowshed: 'Not/A/Name' is no name of an image: write ")
    fake.add(with_config(small(), lambda c: c["rootfs"]["diff_ids"].reverse()))
    failed = cowshed("pull", "-q", f"{fake.address}/a/b", status=125)
    assert failed.stderr.count("\n") == 1
    assert cowshed("images", "-q").stdout == ""


def test_platform(fake, cowshed):
    def foreign(config):
        config["architecture"] = "s390x"

    image = with_config(small(), foreign)
    fake.manifests[image.digest] = image.manifest, MANIFEST
    fake.blobs.update(image.blobs)
    entry = {"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest),
             "platform": {"os": "linux", "architecture": "s390x"}}  # fmt: skip
    fake.put("latest", {"schemaVersion": 2, "manifests": [entry]}, "application/vnd.oci.image.index.v1+json")
    failed = cowshed("pull", f"{fake.address}/a/b", status=125)
    assert "it is there for linux/s390x: choose one with --platform" in failed.stderr
    cowshed("pull", "--platform", "linux/s390x", f"{fake.address}/a/b")
    assert cowshed.lines("images", "--format", "{{.Platform}}") == ["linux/s390x"]


def test_bars_through_a_terminal(fake, cowshed):
    """A person's view, with the window made narrower on the way: bars while it comes, the result at the end."""
    image = Image([LayerTar().file(f"f{n}", os.urandom(600_000)).bytes() for n in range(5)])
    fake.add(image)

    def answer(request, handler):
        data = image.blobs.get(request.path.rpartition("/")[2])
        if data is None or len(data) < 10_000:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for at in range(0, len(data), 50_000):
            handler.wfile.write(data[at : at + 50_000])
            time.sleep(0.02)
        return True

    fake.answer = answer
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    name = f"{fake.address}/a/b"
    process = subprocess.Popen(cowshed.words("pull", name), stdin=slave, stdout=slave, stderr=slave, env=cowshed.env)
    os.close(slave)
    text = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 0.1)[0]:
            continue
        try:
            piece = os.read(master, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        text += piece
    assert process.wait(60) == 0, text
    os.close(master)
    said = text.decode()
    assert b"\x1b[" in text
    assert "B/600kB" in said
    assert "?25l" not in said  # the cursor is never hidden
    assert said.replace("\r", "").endswith(
        f"Digest: {image.digest}\nStatus: Downloaded newer image for {name}:latest\n{name}:latest\n"
    )
    assert "Traceback" not in said


# ---------------------------------------------------------------- interrupted


def stalled(fake):
    """An image of three layers, of which the second never comes; an event tells that it is asked for."""
    image = small()
    fake.add(image)
    second = json.loads(image.manifest)["layers"][1]["digest"]
    asked, over = threading.Event(), threading.Event()

    def answer(request, handler):
        if not request.path.endswith(second):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image.blobs[second])))
        handler.end_headers()
        handler.wfile.write(image.blobs[second][:20])
        handler.wfile.flush()
        asked.set()
        over.wait(60)
        handler.close_connection = True
        return True

    fake.answer = answer
    return image, asked, over


def files(root):
    return sorted(
        str(path.relative_to(root))
        for top in ("blobs", "drivers")
        for path in Path(root, top).rglob("*")
        if "lock" not in path.name
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
@pytest.mark.parametrize("next_one", [("system", "check"), ("pull", "-q", "NAME")], ids=["check", "pull"])
def test_interrupted(fake, cowshed, number, next_one):
    """Nothing is left after the next command, whichever it is."""
    fake.add(small(User="before"), "before")
    cowshed("pull", "-q", f"{fake.address}/a/b:before")
    cowshed("rmi", f"{fake.address}/a/b:before")
    cowshed("system", "check")
    before = files(cowshed.root)
    image, asked, over = stalled(fake)
    name = f"{fake.address}/a/b:latest"
    process = subprocess.Popen(
        cowshed.words("pull", name), env=cowshed.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert asked.wait(30)
        time.sleep(0.2)
        process.send_signal(number)
        started = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - started < 10
    finally:
        over.set()
    assert process.returncode in ({130, 128 + number} if number == signal.SIGINT else {-number, 128 + number})
    assert b"Traceback" not in said
    fake.answer = lambda request, handler: False
    cowshed(*[name if word == "NAME" else word for word in next_one])
    if next_one[0] == "system":
        assert files(cowshed.root) == before
        assert cowshed("images", "-q").stdout == ""
    cowshed("pull", "-q", name)
    assert os.listdir(f"{cowshed.root}/blobs/partial") == []
    assert cowshed.lines("images", "-q", "--no-trunc") == [image.id]
    assert cowshed.lines("system", "check")[-1] == "clean"
    cowshed("rmi", name)
    assert files(cowshed.root) == before
    with open("/proc/self/mountinfo") as mounts:
        assert cowshed.root not in mounts.read()


# ---------------------------------------------------------------- listing


def test_columns_and_templates(fake, three, cowshed):
    lines = cowshed.lines("images")
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["<none>", "<none>", three["three"].id[7:19]],
        [f"{fake.address}/team/two", "two", three["two"].id[7:19]],
        [f"{fake.address}/team/one", "one", three["one"].id[7:19]],
    ]
    assert cowshed.lines("images", "--digests")[0].split()[:3] == ["REPOSITORY", "TAG", "DIGEST"]
    assert three["two"].digest in cowshed.lines("images", "--digests")[2]
    assert cowshed.lines("image", "ls", "-q") == [three[n].id[7:19] for n in ("three", "two", "one")]
    assert cowshed.lines("images", "-aq", "--no-trunc") == [three[n].id for n in ("three", "two", "one")]
    template = "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}"
    assert cowshed.lines("images", "--format", template)[2] == (
        f"{fake.address}/team/one:one {three['one'].id[7:19]} {three['one'].digest}"
    )
    lines = cowshed.lines("images", "--format", "table {{.ID}}\t{{.CreatedSince}}\t{{.Size}}")
    assert lines[0].split() == ["IMAGE", "ID", "CREATED", "SIZE"]
    (first, *_) = [json.loads(line) for line in cowshed.lines("images", "--format", "json")]
    assert first["ID"] == three["three"].id[7:19]
    assert {"Repository", "Tag", "Digest", "CreatedSince", "CreatedAt", "Size", "VirtualSize"} <= set(first)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-f", "dangling=true"], ["three"]),
        (["-f", "dangling=false"], ["two", "one"]),
        (["-f", "label=team"], ["two", "one"]),
        (["-f", "label=team=a"], ["one"]),
        (["-f", "label=team=a", "-f", "label=tier"], ["one"]),
        (["-f", "label=team=b", "-f", "label=tier"], []),
        (["--filter", "reference=*/team/one"], ["one"]),
        (["--filter", "reference=*/team/t?o:*"], ["two"]),
        (["--filter", "reference=*/team/[o]ne", "--filter", "reference=*:two"], ["one"]),
        (["--filter", "reference=*/*/*:two"], ["two"]),
        (["--filter", "reference=*"], []),
        (["-f", "before=ADDRESS/team/two:two"], ["one"]),
        (["-f", "since=ADDRESS/team/one:one"], ["three", "two"]),
        (["-f", "until=2025-06-01T00:00:00Z"], ["two", "one"]),
        (["-f", "until=1h"], ["three", "two", "one"]),
        (["ADDRESS/team/one"], ["one"]),
        (["ADDRESS/team/one:one"], ["one"]),
        (["ADDRESS/team/one:two"], []),
        (["*/team/*", "-f", "label=team=b"], ["two"]),
    ],
)
def test_filters(fake, three, cowshed, words, found):
    words = [word.replace("ADDRESS", fake.address) for word in words]
    assert cowshed.lines("images", "-q", "--no-trunc", *words) == [three[name].id for name in found]


def test_filters_that_are_none(cowshed):
    for words, text in (
        (["-f", "colour=red"], "is not known: write NAME=VALUE with before, dangling"),
        (["-f", "dangling"], "is not known"),
        (["-f", "dangling=perhaps"], "dangling is true or false"),
        (["-f", "before=nothing"], "no such image: nothing"),
        (["-f", "until=yesterday"], "is no time"),
    ):
        failed = cowshed("images", *words, status=125)
        assert text in failed.stderr
        assert failed.stderr.count("\n") == 1


def test_history(fake, cowshed):
    def change(config):
        config["history"] = [
            {"created": "2025-01-01T00:00:00Z", "created_by": "ADD   root\n file in / " + "x" * 60},
            {"created": "2025-01-02T00:00:00.5Z", "created_by": "ENV a=b", "empty_layer": True, "comment": "words"},
            {"created": "2025-01-03T00:00:00Z", "created_by": "COPY . ."},
        ]

    image = with_config(small(), change)
    fake.add(image)
    cowshed("pull", "-q", f"{fake.address}/a/b")
    lines = cowshed.lines("history", f"{fake.address}/a/b")
    assert lines[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert lines[1].startswith(image.id[7:19])  # a layer that no step tells of is the newest
    assert lines[4].rstrip().endswith("B")
    assert "ADD root file in / " in lines[4]
    assert "…" in lines[4]
    assert cowshed.lines("history", "-q", "--no-trunc", image.id[7:19]) == [image.id, *["<missing>"] * 3]
    template = "{{.CreatedBy}}|{{.Size}}|{{.Comment}}"
    rows = cowshed.lines("history", "--no-trunc", "--format", template, "-H=false", image.id)
    assert rows[2] == "ENV a=b|0|words"
    assert rows[1].startswith("COPY . .|")
    assert rows[1].split("|")[1].isdigit()
    assert rows[3].split("|")[0].endswith("x" * 60)


def test_inspect(fake, cowshed):
    config = {
        "Env": ["PATH=/bin", "A=b"],
        "Cmd": ["run"],
        "Entrypoint": ["/e"],
        "WorkingDir": "/w",
        "User": "7",
        "Labels": {"l": "v"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/v": {}},
        "StopSignal": "SIGINT",
    }
    image = small(**config)
    fake.add(image)
    name = f"{fake.address}/a/b"
    cowshed("pull", "-q", name)
    cowshed("tag", name, "other:1")
    (found,) = json.loads(cowshed("image", "inspect", name).stdout)
    document = json.loads(image.blobs[image.id])
    manifest = json.loads(image.manifest)
    assert found["Id"] == image.id
    assert found["RepoTags"] == [f"{name}:latest", "other:1"]
    assert found["RepoDigests"] == sorted([f"{name}@{image.digest}", f"other@{image.digest}"])
    assert found["Created"] == document["created"]
    assert (found["Os"], found["Architecture"]) == ("linux", document["architecture"])
    assert found["Size"] == sum(layer["size"] for layer in manifest["layers"])
    assert found["RootFS"] == {"Type": "layers", "Layers": document["rootfs"]["diff_ids"]}
    assert {key: found["Config"][key] for key in config} == config
    assert found["GraphDriver"]["Name"] == "overlay"
    assert found["Descriptor"]["digest"] == image.digest
    assert cowshed.lines("image", "inspect", "-f", "{{.Id}} {{index .RepoTags 1}} {{json .Config.Cmd}}", name) == [
        f'{image.id} other:1 ["run"]'
    ]
    assert json.loads(cowshed("inspect", "other:1").stdout)[0]["Id"] == image.id
    failed = cowshed("image", "inspect", "nothing", name, status=1)
    assert json.loads(failed.stdout)[0]["Id"] == image.id
    assert "no such image: nothing" in failed.stderr
    assert cowshed("image", "inspect", "nothing", status=1).stdout == "[]\n"


# ---------------------------------------------------------------- names and removal


def test_a_name_has_the_digest_of_what_it_stands_for(cowshed, fake):
    image = small()
    entry = {"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest)}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    digest = digest_of(index)
    fake.blobs.update(image.blobs)
    fake.manifests[image.digest] = image.manifest, MANIFEST
    fake.put("latest", index, INDEX)
    fake.put(digest, index, INDEX)
    name = f"{fake.address}/a/b"
    cowshed("pull", "-q", name)
    cowshed("tag", name, "other:1")
    before = cowshed("image", "inspect", name).stdout
    (found,) = json.loads(before)
    assert found["RepoDigests"] == sorted([f"{name}@{digest}", f"other@{digest}"])
    assert found["Descriptor"]["digest"] == image.digest
    shown = cowshed("images", "--digests", "--format", "{{.Repository}} {{.Digest}}").stdout.split()
    assert sorted(shown) == sorted([name, digest, "other", digest])
    for each in (digest, image.digest):
        assert cowshed("image", "inspect", f"{name}@{each}").stdout == before
    cowshed("storage", "repair", "--rebuild-database", "--replace-whole", "-f")
    assert cowshed("image", "inspect", name).stdout == before
    assert cowshed("storage", "check").stdout == "clean\n"


def test_tag_and_untag(fake, three, cowshed):
    one = f"{fake.address}/team/one:one"
    cowshed("tag", one, "mine")
    cowshed("tag", three["two"].id[7:19], "mine:2")
    cowshed("tag", "mine:2", "mine")  # moves it
    assert cowshed.lines("images", "-q", "--no-trunc", "mine:latest") == [three["two"].id]
    assert cowshed.lines("untag", "mine", "mine:latest") == ["Untagged: mine:latest"]
    assert cowshed.lines("untag", three["two"].id) == [f"Untagged: {fake.address}/team/two:two", "Untagged: mine:2"]
    assert len(cowshed.lines("images", "-q", "-f", "dangling=true")) == 2
    assert "which cannot be given" in cowshed("tag", one, f"x@{three['one'].digest}", status=125).stderr
    assert "no such image" in cowshed("tag", "nothing", "x", status=125).stderr


def test_rmi(fake, three, cowshed):
    one = f"{fake.address}/team/one:one"
    cowshed("tag", one, "mine:1")
    assert cowshed.lines("rmi", "mine:1") == ["Untagged: mine:1"]
    cowshed("tag", one, "mine:1")
    refused = cowshed("rmi", three["one"].id[7:19], status=1)
    assert "names in several repositories" in refused.stderr
    assert cowshed.lines("rmi", "-f", three["one"].id[7:19]) == [
        f"Untagged: {one}",
        "Untagged: mine:1",
        f"Deleted: {three['one'].id}",
    ]
    done = cowshed("rmi", "nothing", three["three"].id, status=1)
    assert done.stdout.splitlines() == [f"Deleted: {three['three'].id}"]
    assert "no such image: nothing" in done.stderr
    assert "no such image" in cowshed("rmi", "-f", "nothing").stderr
    assert cowshed.lines("image", "rm", f"{fake.address}/team/two:two")[-1] == f"Deleted: {three['two'].id}"
    assert not [name for name in files(cowshed.root) if name.startswith("blobs/sha256/")]
    assert cowshed.lines("system", "check")[-1] == "clean"


def test_rmi_of_an_image_that_a_container_uses(fake, cowshed):
    fake.add(small(Cmd=["true"]))
    name = f"{fake.address}/a/b"
    cowshed("pull", "-q", name)
    cowshed("create", "--name", "user", name)
    assert "is used by container user" in cowshed("rmi", name, status=1).stderr
    assert cowshed.lines("rmi", "-f", name) == [f"Untagged: {name}:latest"]
    cowshed("rm", "user")
    assert cowshed.lines("image", "prune", "-f")[1].startswith("deleted: sha256:")


def test_prune(fake, three, cowshed):
    refused = cowshed("image", "prune", input="n\n")
    assert "WARNING! This will remove all images without a name." in refused.stderr
    assert len(cowshed.lines("images", "-q")) == 3
    assert cowshed.lines("image", "prune", input="y\n")[:2] == ["Deleted Images:", f"deleted: {three['three'].id}"]
    assert cowshed.lines("image", "prune", "-f") == ["Total reclaimed space: 0B"]
    assert cowshed.lines("image", "prune", "-af", "--filter", "label=team=b", "--filter", "until=1h")[1:3] == [
        f"untagged: {fake.address}/team/two:two",
        f"deleted: {three['two'].id}",
    ]
    assert "is not known" in cowshed("image", "prune", "-f", "--filter", "name=x", status=125).stderr
    left = cowshed.lines("image", "prune", "-a", "-f")
    assert left[2] == f"deleted: {three['one'].id}"
    assert left[-1].startswith("Total reclaimed space: ")
    assert left[-1] != "Total reclaimed space: 0B"
    assert not [name for name in files(cowshed.root) if name.startswith("blobs/sha256/")]


# ---------------------------------------------------------------- load


def test_load(cowshed, tmp_path):
    image = small()
    image.write_layout(f"{tmp_path}/layout", "example.org/app:1")
    subprocess.run(["tar", "-C", f"{tmp_path}/layout", "-czf", f"{tmp_path}/a.tgz", "."], check=True)
    assert cowshed.lines("load", "-i", f"{tmp_path}/layout") == ["Loaded image: example.org/app:1"]
    quiet = cowshed("load", "-q", "-i", f"{tmp_path}/a.tgz")
    assert (quiet.stdout, quiet.stderr) == ("Loaded image: example.org/app:1\n", "")
    with open(f"{tmp_path}/a.tgz", "rb") as archive:
        piped = cowshed("image", "load", stdin=archive)
    assert piped.stdout == "Loaded image: example.org/app:1\n"
    assert piped.stderr.splitlines()[0] == "reading the archive"
    other = small(User="other")
    other.write_layout(f"{tmp_path}/other", "example.org/app:1")
    refused = cowshed("load", "-qi", f"{tmp_path}/other", status=125)
    assert "load with --replace" in refused.stderr
    cowshed("load", "-q", "--replace", "-i", f"{tmp_path}/other")
    assert cowshed.lines("images", "-q", "--no-trunc", "example.org/app:1") == [other.id]
    nameless = small(User="nameless")
    nameless.write_layout(f"{tmp_path}/nameless", "latest")
    assert cowshed.lines("load", "-qi", f"{tmp_path}/nameless") == [f"Loaded image ID: {nameless.id}"]
    assert "holds no images" in cowshed("load", status=125, stdin=subprocess.DEVNULL).stderr
    assert "does not exist" in cowshed("load", "-i", f"{tmp_path}/nowhere", status=125).stderr


def test_load_from_a_terminal_is_refused(cowshed):
    master, slave = pty.openpty()
    try:
        failed = cowshed("load", status=125, stdin=slave)
    finally:
        os.close(slave)
        os.close(master)
    assert "which is a terminal: use -i FILE" in failed.stderr


def test_a_registry_that_wants_credentials(fake, cowshed):
    fake.answer = lambda request, handler: send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"}) or True
    failed = cowshed("pull", f"{fake.address}/a/b", status=125)
    assert failed.stderr.splitlines()[-1].startswith("cowshed: ")
