"""A real Debian root file system: one layer and twelve, gzip and zstd, pulled from a registry and run."""

import io
import os
import subprocess
import tarfile

import pytest
from cowshed_testing.images import Image

PACKAGES = "python3-minimal"
DEBIAN = "example.test/debian:1"
# Of a guest's own root, which is three times as large as that: what is not of Debian's base
LEFT_OUT = """
    usr/bin/docker-registry usr/bin/skopeo usr/bin/crun usr/sbin/runc usr/share/* usr/lib/udev usr/lib/systemd
    usr/lib/modules usr/lib/python3 usr/lib/x86_64-linux-gnu/libicu* usr/lib/x86_64-linux-gnu/libzpool*
    var/cache/* var/lib/apt/*
""".split()


def debian_mirror() -> str:
    """The archive that this machine's apt uses; no host is written down here."""
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=True
    ).stdout
    return next(line for line in said.splitlines() if line.rstrip("/").endswith("/debian"))


@pytest.fixture(scope="session")
def debian_tar(tmp_path_factory) -> bytes:
    kept = "/var/tmp/cowshed-tests/debian.tar"  # making it takes a minute: kept between runs, by its recipe
    if not os.path.exists(kept):
        if "COWSHED_GUEST" in os.environ:
            pytest.skip(f"a guest has no network to make a Debian root file system from, and no {kept}")
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        subprocess.run(
            ["tar", "-C", "/", "-cf", f"{kept}.new.tar", "--one-file-system", "--numeric-owner", "--sort=name",
             *(f"--exclude=./{name}" for name in LEFT_OUT), "."]
            if "COWSHED_GUEST" in os.environ  # has no network, but is a Debian itself
            else ["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", f"--include={PACKAGES}",
             "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
             "bookworm", f"{kept}.new.tar", f"deb {debian_mirror()} bookworm main"],
            check=True,
        )  # fmt: skip
        os.rename(f"{kept}.new.tar", kept)
    with open(kept, "rb") as f:
        return f.read()


def split(archive: bytes, parts: int) -> list[bytes]:
    """The same tree as several layers: members dealt out in order, hard links with their targets."""
    source = tarfile.open(fileobj=io.BytesIO(archive))
    members = source.getmembers()
    buffers = [io.BytesIO() for _ in range(parts)]
    targets = [tarfile.open(fileobj=b, mode="w", format=tarfile.PAX_FORMAT) for b in buffers]
    where: dict[str, int] = {}
    for n, member in enumerate(members):
        layer = where[member.linkname] if member.islnk() else n * parts // len(members)
        where[member.name] = layer
        targets[layer].addfile(member, source.extractfile(member) if member.isreg() else None)
    for target in targets:
        target.close()
    return [b.getvalue() for b in buffers]


@pytest.fixture(scope="session", params=["one-gzip", "twelve-zstd"])
def debian(request, registry, debian_tar):
    parts, compression = request.param.split("-")
    layers = [debian_tar] if parts == "one" else split(debian_tar, 12)
    image = Image(layers, {"Cmd": ["bash"]}, compression=compression)
    return registry.push(image, f"test/debian-{parts}")


PLACES = (
    "overlay-ext4",
    "overlay-xfs",
    "overlay-btrfs",
    "copy",
    "btrfs",
    "devicemapper",
    "zfs",
    "aufs",
    "aufs@fuse-overlayfs",
)


@pytest.fixture(scope="session")
def layout(debian_tar, tmp_path_factory) -> str:
    """The image of one layer as a directory, not compressed."""
    folder = tmp_path_factory.mktemp("layout") / "debian"
    Image([debian_tar], {"Cmd": ["bash"]}, compression="").write_layout(str(folder), DEBIAN)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
def test_debian_runs_wherever_it_can(tmp_path, engine_on, layout, where):
    with engine_on(where, tmp_path) as it:
        it.ok("load", "-q", "-i", layout)
        assert it.ok("run", "--rm", DEBIAN, "python3", "-c", "print(6 * 7)") == "42\n"
        work = "echo x >> /etc/passwd; rm /usr/bin/python3; chmod 700 /usr/lib; mkdir -p /a/b; echo new > /a/b/c"
        it.ok("run", "--name", "changed", DEBIAN, "bash", "-c", work)
        told = it.ok("diff", "--check", "changed").splitlines()
        assert told == (
            "A /a|A /a/b|A /a/b/c|C /etc|C /etc/passwd|C /usr|C /usr/bin|D /usr/bin/python3|C /usr/lib".split("|")
        )
        it.ok("commit", "changed", "test/debian")
        it.ok("rm", "changed")
        assert it.ok("run", "--rm", "test/debian", "cat", "/a/b/c") == "new\n"
        it.ok("rmi", "test/debian", DEBIAN)
        assert it.ok("system", "check").splitlines()[-1] == "clean"


@pytest.mark.slow
def test_debian_runs(engine, debian):
    engine.ok("pull", "-q", debian)
    assert engine.ok("run", "--rm", debian, "python3", "-c", "print(6 * 7)") == "42\n"
    assert engine.ok("run", "--rm", debian, "apt-get", "--version").startswith("apt ")
    assert engine.ok("run", "--rm", debian, "dpkg", "--audit") == ""
    assert engine("run", "--rm", debian, "bash", "-c", "exit 7").returncode == 7
