"""A real Debian root file system: one layer and twelve, gzip and zstd, pulled from a registry and run."""

import io
import os
import subprocess
import tarfile

import pytest
from cowshed_testing.images import Image

PACKAGES = "python3-minimal"


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
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        subprocess.run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", f"--include={PACKAGES}",
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


@pytest.mark.slow
def test_debian_runs(engine, debian):
    engine.ok("pull", "-q", debian)
    assert engine.ok("run", "--rm", debian, "python3", "-c", "print(6 * 7)") == "42\n"
    assert engine.ok("run", "--rm", debian, "apt-get", "--version").startswith("apt ")
    assert engine.ok("run", "--rm", debian, "dpkg", "--audit") == ""
    assert engine("run", "--rm", debian, "bash", "-c", "exit 7").returncode == 7
