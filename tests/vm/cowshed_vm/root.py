"""The root disk of all guests: a small Debian with what drivers and tests call."""

from __future__ import annotations

from pathlib import Path

from cowshed_vm import ext4
from cowshed_vm.archive import SUITE, Archive
from cowshed_vm.cache import Cache, key, recipe
from cowshed_vm.programs import run

PYTHON = "3.11"  # of that suite
PACKAGES = """
    python3 python3-pyzfs
    dmsetup thin-provisioning-tools zfsutils-linux btrfs-progs libbtrfsutil1 xfsprogs e2fsprogs fuse-overlayfs udev
    apparmor secilc nftables iptables libseccomp2 docker-registry skopeo runc crun
    attr acl file kmod iproute2 procps mount busybox-static
    systemd dbus dbus-user-session libpam-systemd uidmap
""".split()
LEFT_OUT = ("doc", "man", "locale", "info", "lintian")  # of /usr/share


def disk(cache: Cache, archive: Archive) -> Path:
    """The image, built if it is not there. Versions of packages do not count: a new one comes with a new recipe."""
    name = key(SUITE, *PACKAGES, recipe("root.py", "ext4.py"))
    return cache.entry("root", name, lambda folder: _build(folder, archive)) / "root.ext4"


def _build(folder: Path, archive: Archive) -> None:
    tree = folder / "tree"
    run(
        "mmdebstrap", "-q", "--variant=minbase", f"--aptopt={archive.settings}",
        "--aptopt=APT::Install-Recommends false", "--aptopt=APT::Sandbox::User root",
        "--aptopt=Acquire::Languages none",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
        f"--include={','.join(PACKAGES)}", SUITE, tree, *archive.sources,
    )  # fmt: skip
    ext4.image_of(tree, folder / "root.ext4")
    run("rm", "-rf", "--one-file-system", tree)
