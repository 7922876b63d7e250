"""Holes that other runtimes had, each by its number: what would be done to the host is tried, and must not happen."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cowshed_linux import capabilities, paths
from cowshed_runtime import launcher, targets
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps

RENAME_EXCHANGE = 2


def attempt(box, *words: str) -> str:
    """The output, or the stage at which it was refused."""
    try:
        return box.run(*words).out
    except LaunchError as error:
        return error.stage


def replace_by_link(path: Path, target: str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(target)


@pytest.mark.parametrize("number", range(3, 20))
def test_cve_2024_21626_working_directory_through_a_descriptor(box, number):
    """A descriptor of the host that leaked, and a working directory of /proc/self/fd/N that is it."""
    leaked = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(4)]
    for fd in leaked:
        os.set_inheritable(fd, True)
    box.process["cwd"] = f"/proc/self/fd/{number}"
    try:
        error = box.refused()
    finally:
        for fd in leaked:
            os.close(fd)
    assert "working directory" in str(error)


def test_cve_2024_21626_exec(box):
    first = box.start("/bin/sleep", "60")
    leaked = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leaked, True)
    try:
        for number in range(3, 12):
            with pytest.raises(LaunchError, match="working directory"):
                box.exec(first, "/bin/true", cwd=f"/proc/self/fd/{number}")
    finally:
        os.close(leaked)


def test_cve_2016_9962_no_descriptor_of_ours_in_a_process_that_enters(box):
    """Between its entry and its program a joining process shows the container nothing: no descriptor that leads out."""
    secret = box.folder / "secret"
    secret.write_text("host")
    leaked = os.open(secret, os.O_RDONLY)
    box.process["capabilities"] = {
        kind: [*box.process["capabilities"]["bounding"], "CAP_SYS_PTRACE"]
        for kind in ("bounding", "effective", "permitted")
    }
    first = box.start(
        "/bin/sh", "-c", "echo up; while true; do cat /proc/[0-9]*/fd/[3-9]* 2>/dev/null </dev/null | grep host; done"
    )
    assert first.line() == "up"
    try:
        for _ in range(30):
            box.exec(first, "/bin/true")
    finally:
        os.close(leaked)
    box.group.kill()
    assert first.read()[0] == ""


def test_cve_2019_14271_nothing_is_imported_from_the_image(box, tmp_path):
    """A module of the image must not be loaded by what still is our interpreter."""
    mark = "/mark"
    for folder in [f"usr/lib/python3.{minor}" for minor in range(9, 16)] + [p.lstrip("/") for p in sys.path if p]:
        (box.rootfs / folder).mkdir(parents=True, exist_ok=True)
        for name in ("traceback", "linecache", "warnings", "encodings", "ascii", "colorsys", "signal", "tokenize"):
            (box.rootfs / folder / f"{name}.py").write_text(f"open({mark!r}, 'w').close()\n")
    box.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    box.refused("nonesuch")
    box.refused("/bin/\udcff")
    box.config["annotations"] = {"cowshed.init": "true"}
    assert box.run("/bin/true").status == 0
    assert not (box.rootfs / "mark").exists()


def test_cve_2019_14271_no_import_works_in_the_child(box, monkeypatch):
    original = launcher.identity.become

    def become(*arguments, **options):
        try:
            __import__("colorsys")
        except (ImportError, ImportWarning):
            original(*arguments, **options)
        raise LaunchError("test", 0, "imported after the change of root")

    monkeypatch.setattr(launcher.identity, "become", become)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert box.run("/bin/true").status == 0


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("target", ["/etc", "../../../../../../etc", "/tmp"])
def test_cve_2019_19921_kernel_file_system_behind_a_link(box, name, target):
    replace_by_link(box.rootfs / name, target)
    error = box.refused()
    assert "symbolic link" in str(error)


@pytest.mark.parametrize("destination", ["/proc", "/proc/", "/proc/self/attr", "/proc/sys/kernel", "/proc/../proc/x"])
def test_cve_2023_27561_volume_over_proc(box, tmp_path, destination):
    box.config["mounts"].append(
        {"destination": destination, "type": "bind", "source": str(tmp_path), "options": ["bind"]}
    )
    error = box.refused()
    assert error.stage in ("spec", "mount")
    assert "/proc" in str(error) or ".." in str(error)


def test_cve_2023_28642_volume_that_a_link_leads_into_proc(box, tmp_path):
    (box.rootfs / "innocent").symlink_to("/proc/sys")
    box.config["mounts"].append(
        {"destination": "/innocent", "type": "bind", "source": str(tmp_path), "options": ["bind"]}
    )
    assert "over the kernel's /proc" in str(box.refused())


@pytest.mark.parametrize("entry", [{"type": "tmpfs", "source": "tmpfs"}, {"type": "cgroup"}, {"type": "mqueue"}])
def test_cve_2019_16884_file_system_that_a_link_leads_into_proc(box, entry):
    (box.rootfs / "innocent").symlink_to("/proc/self/attr" if entry["type"] == "tmpfs" else "/proc/sys")
    box.config["mounts"].append({"destination": "/innocent", **entry})
    assert "over the kernel's /proc" in str(box.refused())


@pytest.mark.parametrize("destination", ["//proc", "/./proc", "/proc/.", "proc"])
def test_cve_2019_16884_proc_by_another_spelling(box, destination):
    box.config["mounts"] = [entry for entry in box.config["mounts"] if entry["destination"] != "/proc"]
    box.config["mounts"].append({"destination": destination, "type": "tmpfs", "source": "tmpfs"})
    assert "/proc" in str(box.refused())


def test_cve_2025_52881_tmpfs_over_proc_does_not_swallow_settings(box):
    box.config["mounts"].append({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"})
    box.linux["sysctl"] = {"kernel.msgmax": "4444"}
    assert "/proc" in str(box.refused())


def test_cve_2025_52881_setting_without_a_proc_is_not_written_elsewhere(box):
    box.config["mounts"] = [entry for entry in box.config["mounts"] if entry["destination"] != "/proc"]
    (box.rootfs / "proc/sys/kernel").mkdir(parents=True)
    (box.rootfs / "proc/sys/kernel/msgmax").write_text("image")
    box.linux["sysctl"] = {"kernel.msgmax": "4444"}
    assert "no /proc of its own" in str(box.refused())
    assert (box.rootfs / "proc/sys/kernel/msgmax").read_text() == "image"


@pytest.mark.parametrize("target", ["/etc", "../../../../../../../../etc", "/proc/self/root/etc", "/nowhere"])
def test_cve_2021_30465_mount_target_behind_a_link(box, tmp_path, target):
    """Whatever the link says, the mount is inside; the host has no new name and no new mount."""
    before = Path("/proc/self/mountinfo").read_text()
    outside = sorted(os.listdir("/etc"))
    (box.rootfs / "data").symlink_to(target)
    source = tmp_path / "source"
    source.mkdir()
    (source / "inside").write_text("volume")
    box.config["mounts"].append(
        {"destination": "/data/deep/er", "type": "bind", "source": str(source), "options": ["bind"]}
    )
    said = attempt(box, "/bin/cat", "/data/deep/er/inside")
    assert said in ("volume", "mount")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert sorted(os.listdir("/etc")) == outside
    assert not os.path.exists("/nowhere")


def test_cve_2021_30465_racing_links(tmp_path):
    """A component is swapped for a link to outside all the time: what is made is made inside."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "volume/a").mkdir(parents=True)
    outside.mkdir()
    (root / "volume/link").symlink_to(f"../../../..{outside}")
    stop = threading.Event()
    libc = ctypes.CDLL(None)
    a, b = str(root / "volume/a").encode(), str(root / "volume/link").encode()

    def swap():
        while not stop.is_set():
            libc.renameat2(-100, a, -100, b, RENAME_EXCHANGE)

    racer = threading.Thread(target=swap)
    racer.start()
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        made = 0
        for number in range(600):
            try:
                os.close(targets.place(fd, f"/volume/a/new{number}", directory=bool(number % 2)))
                made += 1
            except OSError:
                continue
        assert made
    finally:
        stop.set()
        racer.join()
        os.close(fd)
    assert os.listdir(outside) == []
    everywhere = [name for _, folders, files in os.walk(root) for name in (*folders, *files) if name.startswith("new")]
    assert everywhere


@pytest.mark.parametrize("target", ["/proc/sys/kernel/core_pattern", "/etc/passwd", "zero"])
def test_cve_2025_31133_dev_null_of_the_image(box, target):
    """Masks bind /dev/null: an image's own, which is something else, must not be bound instead."""
    box.config["mounts"] = [entry for entry in box.config["mounts"] if not entry["destination"].startswith("/dev")]
    (box.rootfs / "dev/null").symlink_to(target)
    assert box.refused().stage in ("devices", "mask")


def test_cve_2025_31133_masks_hide_with_a_fresh_dev(box):
    (box.rootfs / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    assert box.sh("stat -c %t:%T /proc/keys; cat /proc/keys").out == "1:3\n"


def test_cve_2025_52565_console_is_the_kernels(box):
    """The terminal comes from the container's own devpts by descriptor: an image's /dev/pts cannot stand in for it."""
    box.config["mounts"] = [entry for entry in box.config["mounts"] if not entry["destination"].startswith("/dev")]
    (box.rootfs / "dev/pts").mkdir()
    (box.rootfs / "dev/pts/ptmx").write_text("")
    box.process["terminal"] = True
    assert "ptmx" in str(box.refused())


@pytest.mark.parametrize("way", ["absolute", "relative", "/etc"])
def test_cve_2026_41579_dev_behind_a_link(box, way):
    """All of /dev is made beneath the root, wherever the image's link seems to lead."""
    outside = box.folder / "outside"
    outside.mkdir()
    target = {"absolute": str(outside), "relative": "../" * 12 + str(outside)[1:]}.get(way, way)
    box.config["mounts"] = [entry for entry in box.config["mounts"] if not entry["destination"].startswith("/dev")]
    replace_by_link(box.rootfs / "dev", target)
    assert attempt(box, "/bin/true") in ("", "devices", "mask", "mount")
    assert os.listdir(outside) == []
    assert not {"null", "zero", "pts", "ptmx", "fd", "stdin", "core"} & {*os.listdir("/etc")}


def test_cve_2022_29162_no_inheritable_capabilities(box):
    first = box.start("/bin/sleep", "60")
    for done in (box.exec(first, "/bin/grep", "CapInh", "/proc/self/status"),):
        assert int(done.out.split()[1], 16) == 0


def test_cve_2022_0492_release_agent(box):
    done = box.sh(
        f"mount -t cgroup -o memory x /tmp; ls /sys/fs/cgroup/*/release_agent; echo 1 > {box.groups}/cgroup.procs"
    )
    assert "denied" in done.err or "not permitted" in done.err
    assert "Read-only" in done.err
    assert done.out == ""


def test_cve_2025_23266_hooks_inherit_nothing_of_the_image(box):
    seen = box.folder / "seen"
    hook = box.folder / "hook"
    hook.write_text(f"#!/bin/sh\ncat /proc/self/environ > {seen}; pwd >> {seen}\n")
    hook.chmod(0o755)
    box.process["env"] = ["PATH=/bin", "LD_PRELOAD=/evil.so"]
    box.config["hooks"] = {"createContainer": [{"path": str(hook), "env": ["ONLY=this", "PATH=/bin"]}]}
    assert box.run("/bin/true").status == 0
    said = seen.read_text()
    assert "LD_PRELOAD" not in said
    assert "ONLY=this" in said


PROTECTED = """
import os, sys
sys.path[:0] = sys.argv[1].split(":")
from cowshed_linux import mount, process
if not os.fstatvfs(os.open("/proc/self/exe", os.O_PATH)).f_flag & os.ST_RDONLY:
    tree = mount.clone(os.readlink("/proc/self/exe"))
    mount.set_attributes(tree, mount.ATTR_RDONLY)
    os.execve(tree, [sys.executable, *sys.orig_argv[1:]], dict(os.environ))
from cowshed_runtime import launcher
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.fastjson import loads
config = loads(sys.argv[2])
root = mount.clone(config["root"]["path"])
if os.fork() == 0:
    launcher.launch(config, root, (0, 1, 2), group=Group(sys.argv[3]), cache=sys.argv[4])
    os._exit(0)
os.wait()
os.waitpid(-1, process.WALL)
"""


def test_cve_2019_5736_interpreter_cannot_be_overwritten(box):
    """With `--init` process 1 is our interpreter: writing to /proc/1/exe must fail, whoever the writer is, because the
    interpreter runs from a read-only clone of its mount, as that of the zygote does."""
    box.config["annotations"] = {launcher.INIT_ANNOTATION: "true"}
    box.config["root"]["path"] = str(box.rootfs)
    box.process["args"] = ["/bin/sh", "-c", "readlink /proc/1/exe; echo overwritten > /proc/1/exe"]
    every = [f"CAP_{name}" for name in capabilities.NAMES]
    box.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), every)
    places = ":".join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROTECTED, places, dumps(box.config), box.group.name, str(box.cache)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "python" in done.stdout or done.stdout == "/\n", done
    assert "Read-only file system" in done.stderr, done


def test_an_error_longer_than_a_pipe_holds_is_told(box):
    """Whoever sets a container up writes it while nobody reads: it must not wait for ever."""
    box.process["cwd"] = "/" + "a" * 200_000
    said = str(box.refused())
    assert said.endswith("File name too long")
    assert len(said) < 10_000


def test_strings_with_nul_are_refused(box):
    """C would cut them (the pattern of CVE-2021-43784: what is checked is not what is used)."""
    box.config["hostname"] = "a\0b"
    assert box.refused().stage == "spec"
    with pytest.raises(ValueError, match="NUL"):
        paths.openat2(-100, "a\0b", 0, resolve=0)
