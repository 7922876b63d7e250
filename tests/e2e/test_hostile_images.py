"""Images that mean harm when they are run: each path that an engine touches leads to the host, each field of the
configuration is what it must not be (defences S11 and S12 of the table in docs/reference/image-security.md)."""

import os
import tarfile

import pytest
from cowshed_testing.images import Image, LayerTar, busybox_layer


@pytest.fixture
def run(shop, tmp_path):
    """Load an image of a shell and one more layer, and run `true` in it; afterwards the host's files are as before."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("alive")
    (outside / "empty").write_text("")
    names = []

    def facts():
        return {p: (os.lstat(p).st_mode, os.lstat(p).st_uid, os.lstat(p).st_mtime_ns, p.is_file() and p.read_bytes())
                for p in [outside, *outside.iterdir()]}  # fmt: skip

    before = facts()

    def one(layer, *words, command=("true",), **config):
        name = f"{tmp_path.name.lower().strip('_')}/{len(names)}"
        names.append(name)
        image = Image([busybox_layer(), layer.bytes()], {"Env": ["PATH=/bin"], **config})
        folder = tmp_path / name.replace("/", "-")
        image.write_layout(f"{folder}/layout", f"docker.io/{name}:latest")
        with tarfile.open(f"{folder}/tar", "w") as tar:
            tar.add(f"{folder}/layout", ".")
        loaded = shop("load", "-q", "-i", f"{folder}/tar")
        if loaded.returncode:
            return loaded
        return shop("run", "--rm", *words, name, *command)

    one.outside = outside
    yield one
    assert facts() == before
    for name in names:
        shop("rmi", "-f", name)


@pytest.mark.parametrize("to", ["{}/canary", "../../../../../..{}"])
@pytest.mark.parametrize(
    "paths", [("dev",), ("proc",), ("sys",), ("etc",), ("etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/passwd"),
              ("dev/null", "dev/shm", "dev/pts", "dev/console")],
)  # fmt: skip
def test_s12_paths_that_the_engine_uses_lead_to_the_host(run, paths, to):
    """CVE-2026-41579, CVE-2026-47766, CVE-2025-31133, CVE-2025-52565: whatever the container sees, the host is as it
    was, and an error is one line."""
    layer = LayerTar()
    for path in paths:
        layer.symlink(path, to.format(run.outside))
    done = run(layer)
    assert done.stderr.count(b"\n") <= 1
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("to", ["{}", "/etc"])
def test_s11_cve_2022_23648_a_volume_that_is_a_link_gives_nothing_of_the_host(run, to):
    """An empty volume gets what the image has at its target: of the image, wherever the target leads."""
    layer = LayerTar().symlink("data", to.format(run.outside))
    done = run(layer, command=("sh", "-c", "cat /data/canary /data/shadow"), Volumes={"/data": {}})
    assert b"alive" not in done.stdout
    assert b"root:" not in done.stdout


@pytest.mark.parametrize("user", ["4294967296", "-1", "2147483648"])
def test_s11_cve_2024_40635_users_that_are_too_large_are_not_root(run, user):
    done = run(LayerTar(), command=("id", "-u"), User=user)
    assert done.returncode == 125
    assert done.stdout == b""


def test_s11_cve_2026_46680_a_number_is_no_name(run):
    layer = LayerTar().file("etc/passwd", "1000:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n")
    assert run(layer, command=("id", "-u"), User="1000").stdout == b"1000\n"


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_s11_cve_2024_9676_a_passwd_that_is_no_file_holds_nothing_up(run, kind):
    layer = LayerTar()
    for name in ("etc/passwd", "etc/group"):
        if kind == "fifo":
            layer._add(name, tarfile.FIFOTYPE, 0o644)
        elif kind == "link":
            layer.symlink(name, f"{run.outside}/canary")
        else:
            layer.dir(name)
    done = run(layer, command=("grep", "Uid", "/proc/self/status"))  # `id` would itself wait for the pipe
    assert done.stdout.split()[1] == b"0"
    assert run(layer, User="alive").returncode == 125


def test_s11_cve_2026_47262_a_huge_group_file_is_read_up_to_a_limit(run):
    layer = LayerTar().file("etc/group", "root:x:0:\n" + "x" * (16 << 20))
    assert run(layer, command=("id", "-u")).stdout == b"0\n"


@pytest.mark.parametrize("entry", ["SECRET", "=x"])
def test_s11_cve_2026_57231_variables_without_a_value_take_none_from_the_host(run, shop, entry):
    shop.env["SECRET"] = "of the host"
    try:
        done = run(LayerTar(), command=("env",), Env=["PATH=/bin", entry])
    finally:
        del shop.env["SECRET"]
    assert done.returncode == 125
    assert b"of the host" not in done.stdout


def test_s11_cve_2026_53488_labels_are_data(run):
    labels = {"run": "touch /evil", "io.podman.annotations.privileged": "TRUE", "org.systemd.property.X": "'x'"}
    done = run(LayerTar(), command=("sh", "-c", "ls / | grep evil; grep CapEff /proc/self/status"), Labels=labels)
    assert b"evil" not in done.stdout
    assert done.stdout.split()[1] != b"000001ffffffffff"


def test_s11_cve_2023_25173_supplementary_groups_are_those_of_the_user_alone(run):
    layer = LayerTar().file("etc/passwd", "root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\n")
    layer.file("etc/group", "root:x:0:\nwww:x:33:\nstaff:x:50:www\n")
    assert run(layer, command=("id", "-G"), User="www").stdout.split() == [b"33", b"50"]
    assert run(layer, command=("id", "-G"), User="12:50").stdout.split() == [b"50"]


@pytest.mark.parametrize("folder", ["/proc/self/fd/7", "/proc/1/root", "/data"])
def test_s11_cve_2024_21626_a_working_directory_leads_nowhere_outside(run, folder):
    layer = LayerTar().symlink("data", str(run.outside))
    done = run(layer, command=("sh", "-c", "ls; ls ../../../../.."), WorkingDir=folder)
    assert b"canary" not in done.stdout
    assert b"lost+found" not in done.stdout
