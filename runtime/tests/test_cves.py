"""Holes that other runtimes had, each by its number: what would be done to the host is tried, and must not happen.

The last test of the file takes each one's defence away, and insists that the attack then succeeds.
COWSHED_RACE_ROUNDS=1000 lets those that race do so a thousand times.
"""

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cowshed_testing.attacks import ROUNDS, attack, of, reached, succeeds

from cowshed_linux import capabilities, libc, mount, paths, process, procfs
from cowshed_runtime import hooks, identity, launcher, mounting, rootfs, targets
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps

FEW = ROUNDS or 8
MANY = 400  # for an attack that only has to win once


@pytest.fixture
def rounds() -> int:
    return FEW


def tried(box, *words: str) -> str:
    """Start a container; its output, or why it was refused, which must be for a reason that was thought of."""
    try:
        done = box.run(*words)
    except LaunchError as error:
        if error.stage in ("bug", "start"):
            raise
        return f"refused: {error}"
    return done.out + done.err


@contextlib.contextmanager
def swapping(one: Path, other: Path):
    """Another process that exchanges two names as fast as it can."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                paths.rename2(-100, str(one), -100, str(other), paths.RENAME_EXCHANGE)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, 9)
        assert os.waitpid(pid, 0)[1] == 9, "it did not go on to the end"


def replace_by_link(path: Path, target: str | Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(target)


def without_mounts(box, start: str) -> None:
    box.config["mounts"] = [entry for entry in box.config["mounts"] if not entry["destination"].startswith(start)]


def volume(box, source: Path, destination: str) -> None:
    box.config["mounts"].append(
        {"destination": destination, "type": "bind", "source": str(source), "options": ["bind"]}
    )


def may(box, *names: str) -> None:
    """Give the container these capabilities too."""
    for kind in ("bounding", "effective", "permitted"):
        box.process["capabilities"][kind] = [*box.process["capabilities"][kind], *names]


def nothing(*_: object, **__: object) -> None:
    return None


# What others did, and what is here in the place of a defence when that is taken away


def by_name(monkeypatch, box) -> None:
    """A target is looked at and then used by its name, with time for others in between."""

    def place(root: int, path: str, *, directory: bool, plain: bool = False, link: bool = False) -> int:
        full = f"/proc/self/fd/{root}/{path.strip('/')}"
        time.sleep(0.002)
        os.makedirs(full if directory else os.path.dirname(full), exist_ok=True)
        if not directory:
            os.close(os.open(full, os.O_CREAT | os.O_WRONLY, 0o644))
        return os.open(full, os.O_PATH)

    for module in (mounting, rootfs, targets):
        monkeypatch.setattr(module, "place", place)


def with_magic_links(monkeypatch, box) -> None:
    """Descriptors are left open until the program starts, and the directory is entered by its name."""
    monkeypatch.setattr(launcher, "_keep", nothing)
    monkeypatch.setattr(identity, "_change_directory", os.chdir)
    monkeypatch.setattr(rootfs.MakeDirectory, "execute", nothing)


def with_descriptors(monkeypatch, box) -> None:
    """Descriptors stay open until the program starts, in a process that others may look into."""
    find = identity._find

    def slowly(name, environment):
        time.sleep(0.2)
        return find(name, environment)

    monkeypatch.setattr(launcher, "_keep", nothing)
    monkeypatch.setattr(launcher.process, "PR_SET_DUMPABLE", process.PR_SET_KEEPCAPS)
    monkeypatch.setattr(identity, "_find", slowly)


def anything_over_proc(monkeypatch, box) -> None:
    monkeypatch.setattr(launcher.spec, "check", nothing)
    monkeypatch.setattr(mounting._Mount, "_refuse_in_proc", nothing)


def any_proc(monkeypatch, box) -> None:
    """Whatever is at /proc is taken for it."""
    monkeypatch.setattr(rootfs.procfs, "handle", lambda root: paths.open_in_root(root, "proc", os.O_PATH))


def over_links(monkeypatch, box) -> None:
    """The kernel's file systems are mounted wherever a link leads."""
    placed = targets.place
    monkeypatch.setattr(mounting, "place", lambda *a, plain=False, **o: placed(*a, **o))


def imports_stay(monkeypatch, box) -> None:
    monkeypatch.setattr(launcher.cloning, "forget_imports", nothing)


# Descriptors and directories


@attack(with_magic_links)
def test_cve_2024_21626_working_directory_through_a_descriptor(box):
    """A descriptor of the host that leaked, and a working directory of /proc/self/fd/N that is it."""
    (box.folder / "secret").write_text("the host's")
    leaked = [os.open(box.folder, os.O_RDONLY | os.O_DIRECTORY) for _ in range(4)]
    for fd in leaked:
        os.set_inheritable(fd, True)
    try:
        said = []
        for number in range(3, 24):
            box.process["cwd"] = f"/proc/self/fd/{number}"
            said.append(tried(box, "/bin/cat", "secret"))
            reached("the host's" in said[-1], f"descriptor {number}")
    finally:
        for fd in leaked:
            os.close(fd)
    assert all("working directory" in text for text in said)


@attack(with_magic_links)
def test_cve_2024_21626_exec(box):
    (box.folder / "secret").write_text("the host's")
    first = box.start("/bin/sleep", "60")
    leaked = os.open(box.folder, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leaked, True)
    said = []
    try:
        for number in range(3, 24):
            try:
                said.append(box.exec(first, "/bin/cat", "secret", cwd=f"/proc/self/fd/{number}").out)
            except LaunchError as error:
                said.append(str(error))
            reached(said[-1] == "the host's", f"descriptor {number}")
    finally:
        os.close(leaked)
    assert all("working directory" in text for text in said)


@attack(with_descriptors, rounds=MANY)
def test_cve_2016_9962_no_descriptor_of_ours_in_a_process_that_enters(box, rounds):
    """Between its entry and its program a joining process shows the container nothing: no descriptor that leads out."""
    secret = box.folder / "secret"
    secret.write_text("host")
    leaked = os.open(secret, os.O_RDONLY)
    first = box.start("/bin/sh", "-c", "echo up; while true; do ls -l /proc/[0-9]*/fd 2>&1; done | grep secret")
    assert first.line() == "up"
    os.set_blocking(first.out, False)
    try:
        for _ in range(rounds * 4):
            box.exec(first, "/bin/true")
            with contextlib.suppress(BlockingIOError):
                reached(os.read(first.out, 1000), "a descriptor of the host was seen")
    finally:
        os.close(leaked)


def open_descriptors(monkeypatch, box) -> None:
    monkeypatch.setattr(launcher, "_keep", nothing)


@attack(open_descriptors)
def test_cve_2016_9962_descriptors_are_closed_before_anything_else(box, monkeypatch):
    """Also for a container that may look into any process (CAP_SYS_PTRACE): nothing of the host is open in one that
    enters by the time that it does anything at all."""
    first = box.start("/bin/sleep", "60")
    seen = mmap.mmap(-1, 65536)  # shared with the child
    enter = launcher._enter_groups

    def look(entrance, report):
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # of the listing itself
                seen.write(os.readlink(f"/proc/self/fd/{fd}").encode() + b"\n" if int(fd) > 2 else b"")
        enter(entrance, report)

    monkeypatch.setattr(launcher, "_enter_groups", look)
    box.exec(first, "/bin/true")
    names = seen[:].rstrip(b"\0").decode().split()
    seen.close()
    assert names
    of_host = [name for name in names if name.startswith("/") and name != "/dev/null" and "/cgroup" not in name]
    reached(of_host, "open in a process that enters")


WITH_INTERPRETER = """
import os, sys
sys.path[:0] = sys.argv[1].split(":")
from cowshed_linux import mount, process
if sys.argv[5] == "protected" and not os.fstatvfs(os.open("/proc/self/exe", os.O_PATH)).f_flag & os.ST_RDONLY:
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
# The first process ends, and with it everything that executes the interpreter: until then the kernel says ETXTBSY.
OVERWRITE = """
exec 3</proc/$PPID/exe
(for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    sleep 0.1; echo overwritten 2>/dev/null >/proc/self/fd/3 && exit 0
done; echo overwritten >/proc/self/fd/3) &
exit 0
"""


def bare_interpreter(monkeypatch, box) -> None:
    monkeypatch.setenv("COWSHED_TEST_INTERPRETER", "bare")


@attack(bare_interpreter)
def test_cve_2019_5736_interpreter_cannot_be_overwritten(box):
    """With `--init` the parent of the program is our interpreter. A copy stands in for the host's, run from a read-only
    clone of its mount as that of the zygote is."""
    interpreter = box.folder / "python"
    shutil.copy(sys.executable, interpreter)
    before = interpreter.read_bytes()
    box.config["annotations"] = {launcher.INIT_ANNOTATION: "true"}
    box.config["root"]["path"] = str(box.rootfs)
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "pid"]
    box.process["args"] = ["/bin/sh", "-c", OVERWRITE]
    may(box, *(f"CAP_{name}" for name in capabilities.NAMES))
    places = ":".join(place for place in sys.path if place)
    done = subprocess.run(
        [interpreter, "-I", "-c", WITH_INTERPRETER, places, dumps(box.config), box.group.name, str(box.cache),
         os.environ.get("COWSHED_TEST_INTERPRETER", "protected")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    reached(interpreter.read_bytes() != before, "the interpreter was written")
    assert "Read-only file system" in done.stderr, done


# Code of the image


@attack(imports_stay)
def test_cve_2019_14271_nothing_is_imported_from_the_image(box, monkeypatch):
    """A module of the image must not be loaded by what still is our interpreter."""
    for folder in [f"usr/lib/python3.{minor}" for minor in range(9, 16)] + [p.lstrip("/") for p in sys.path if p]:
        (box.rootfs / folder).mkdir(parents=True, exist_ok=True)
        for name in ("traceback", "linecache", "warnings", "encodings", "ascii", "colorsys", "signal", "tokenize"):
            (box.rootfs / folder / f"{name}.py").write_text("open('/mark', 'w').close()\n")
    become = identity.become

    def import_first(*arguments, **options):
        with contextlib.suppress(ImportError, ImportWarning):
            __import__("colorsys")
        become(*arguments, **options)

    tried(box, "nonesuch")
    tried(box, "/bin/\udcff")
    monkeypatch.setattr(identity, "become", import_first)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    box.config["annotations"] = {launcher.INIT_ANNOTATION: "true"}
    assert "refused" not in tried(box, "/bin/true")
    reached((box.rootfs / "mark").exists(), "code of the image ran")


def inheriting_hooks(monkeypatch, box) -> None:
    execve = os.execve

    def with_the_containers(path, arguments, environment):
        execve(path, arguments, {**environment, **dict(entry.split("=", 1) for entry in box.process["env"])})

    monkeypatch.setattr(hooks.os, "execve", with_the_containers)


@attack(inheriting_hooks)
def test_cve_2025_23266_hooks_inherit_nothing_of_the_image(box):
    seen, hook = box.folder / "seen", box.folder / "hook"
    hook.write_text(f"#!/bin/sh\ncat /proc/self/environ > {seen}; pwd > {seen}.cwd\n")
    hook.chmod(0o755)
    box.process["env"] = ["PATH=/bin", "LD_PRELOAD=/evil.so"]
    box.config["hooks"] = {"createContainer": [{"path": str(hook), "env": ["ONLY=this", "PATH=/bin"]}]}
    tried(box, "/bin/true")
    reached("LD_PRELOAD" in seen.read_text(), "a hook of the host has the environment of the image")
    assert "ONLY=this" in seen.read_text()
    assert not Path(f"{seen}.cwd").read_text().startswith(str(box.rootfs)), "CVE-2025-23267: nor its directory"


# /proc and /sys


@attack(over_links, target="/etc")
@pytest.mark.parametrize("target", ["/etc", "../../../../../../etc", "/tmp"])
def test_cve_2019_19921_proc_behind_a_link(box, target):
    replace_by_link(box.rootfs / "proc", target)
    said = tried(box, "/bin/true")
    reached("refused" not in said, f"/proc is at {target}")
    assert "symbolic link" in said


@attack(over_links, name="sys", target="/etc")
@pytest.mark.parametrize("target", ["/etc", "../../../../../../etc"])
@pytest.mark.parametrize("name", ["proc", "sys"])
def test_cve_2025_54867_kernel_file_system_behind_a_link(box, name, target):
    """youki; CVE-2019-18837 of crun is the same for a root file system that was made so."""
    replace_by_link(box.rootfs / name, target)
    said = tried(box, "/bin/true")
    reached("refused" not in said, f"/{name} is at {target}")
    assert "symbolic link" in said


@attack(over_links)
def test_cve_2019_18837_rootfs_with_links_where_the_kernels_files_must_be(box):
    replace_by_link(box.rootfs / "proc", "tmp")
    replace_by_link(box.rootfs / "sys", "etc")
    said = tried(box, "/bin/true")
    reached("refused" not in said, "mounted over links")
    assert "symbolic link" in said


@attack(anything_over_proc, destination="/proc/self/attr")
@pytest.mark.parametrize("destination", ["/proc", "/proc/", "/proc/self/attr", "/proc/sys/kernel", "/proc/../proc/x"])
def test_cve_2023_27561_volume_over_proc(box, tmp_path, destination):
    volume(box, tmp_path, destination)
    said = tried(box, "/bin/true")
    reached("refused" not in said, f"a volume lies on {destination}")
    assert "/proc" in said or ".." in said


@attack(anything_over_proc)
def test_cve_2023_28642_volume_that_a_link_leads_into_proc(box, tmp_path):
    (box.rootfs / "innocent").symlink_to("/proc/sys")
    volume(box, tmp_path, "/innocent")
    said = tried(box, "/bin/true")
    reached("refused" not in said, "a volume lies on /proc/sys")
    assert "over the kernel's /proc" in said


@attack(anything_over_proc, entry={"type": "tmpfs", "source": "tmpfs"})
@pytest.mark.parametrize("entry", [{"type": "tmpfs", "source": "tmpfs"}, {"type": "cgroup"}, {"type": "mqueue"}])
def test_cve_2019_16884_file_system_that_a_link_leads_into_proc(box, entry):
    (box.rootfs / "innocent").symlink_to("/proc/self/attr" if entry["type"] == "tmpfs" else "/proc/sys")
    box.config["mounts"].append({"destination": "/innocent", **entry})
    said = tried(box, "/bin/true")
    reached("refused" not in said, "something lies over the kernel's files")
    assert "over the kernel's /proc" in said


def by_spelling(monkeypatch, box) -> None:
    """A name is judged as it is written."""
    make = mounting.FileSystem.__init__

    def made(self, kind, source, destination, options):
        make(self, kind, source, "//proc" if destination == "/proc" else destination, options)

    monkeypatch.setattr(launcher.spec, "check", nothing)
    monkeypatch.setattr(mounting.FileSystem, "__init__", made)


@attack(by_spelling, destination="//proc")
@pytest.mark.parametrize("destination", ["//proc", "/./proc", "/proc/.", "proc"])
def test_cve_2019_16884_proc_by_another_spelling(box, destination):
    without_mounts(box, "/proc")
    box.config["mounts"].append({"destination": destination, "type": "tmpfs", "source": "tmpfs"})
    said = tried(box, "/bin/true")
    reached("refused" not in said, "something else is at /proc")
    assert "/proc" in said


def crossing_mounts(monkeypatch, box) -> None:
    monkeypatch.setattr(procfs, "RESOLVE_NO_XDEV", 0)


@attack(crossing_mounts)
def test_cve_2025_62596_label_written_where_something_lies_over_proc(box):
    """A tmpfs on /proc/self/attr takes what is written there, and says that all is well."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "?"
        try:
            process.unshare(process.CLONE_NEWNS)
            mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
            mount.mount("fake", f"/proc/{os.getpid()}/attr", "tmpfs")
            os.close(os.open("/proc/self/attr/exec", os.O_CREAT | os.O_WRONLY, 0o666))
            try:
                procfs.open_beneath(procfs.handle(), "self/attr/exec", os.O_WRONLY)
                said = "written elsewhere"
            except OSError as error:
                said = error.strerror
        finally:
            os.write(write_end, said.encode())
            os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    said = os.read(read_end, 1000).decode()
    os.close(read_end)
    reached(said == "written elsewhere", "the label")
    assert "cross-device" in said


def test_cve_2025_52881_tmpfs_over_proc_does_not_swallow_settings(box):
    """No defence can be taken away so that this would succeed: a tmpfs that is mounted here is empty, and a setting
    that has no file is an error by itself. One that finds a file is the next test."""
    box.config["mounts"].append({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"})
    box.linux["sysctl"] = {"kernel.msgmax": "4444"}
    assert "/proc" in str(box.refused())


@attack(any_proc)
def test_cve_2025_52881_setting_without_a_proc_is_not_written_elsewhere(box):
    without_mounts(box, "/proc")
    (box.rootfs / "proc/sys/kernel").mkdir(parents=True)
    setting = box.rootfs / "proc/sys/kernel/msgmax"
    setting.write_text("image")
    box.linux["sysctl"] = {"kernel.msgmax": "4444"}
    said = tried(box, "/bin/true")
    reached(setting.read_text() != "image", "a file of the image is taken for the kernel's")
    assert "no /proc of its own" in said


# Mount targets


@attack(by_name, target=None)
@pytest.mark.parametrize("target", ["/etc", "../../../../../../../../etc", "/proc/self/root/etc", "/nowhere", None])
def test_cve_2021_30465_mount_target_behind_a_link(box, tmp_path, target):
    """Whatever the link says, the mount is inside; the host has no new name and no new mount."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = target or str(outside)
    etc = sorted(os.listdir("/etc"))
    (box.rootfs / "data").symlink_to(target)
    source = tmp_path / "source"
    source.mkdir()
    (source / "inside").write_text("volume")
    volume(box, source, "/data/deep/er")
    said = tried(box, "/bin/cat", "/data/deep/er/inside")
    reached(os.listdir(outside), "names were made on the host")
    assert said == "volume" or "mount" in said or "bind" in said
    assert sorted(os.listdir("/etc")) == etc
    assert str(source) not in Path("/proc/self/mountinfo").read_text()
    assert not os.path.exists("/nowhere")


def race(box, *, directory: bool, rounds: int) -> None:
    """A component of a volume that another container has too is swapped for a link to the host all the time, while
    what is mounted below it has to be made first."""
    shared, outside, source = (box.folder / name for name in ("shared", "outside", "source"))
    (shared / "component").mkdir(parents=True)
    outside.mkdir()
    (shared / "link").symlink_to(outside)
    source.mkdir() if directory else source.write_text("volume")
    volume(box, shared, "/shared")
    volume(box, source, "/shared/component/made")
    started = 0
    with swapping(shared / "component", shared / "link"):
        for number in range(rounds):
            box.config["mounts"][-1]["destination"] = f"/shared/component/made{number}"
            started += "refused" not in tried(box, "/bin/true")
            reached(os.listdir(outside), "made on the host")
    assert started or rounds < 50


@attack(by_name, rounds=MANY)
def test_cve_2021_30465_racing_links(box, rounds):
    race(box, directory=True, rounds=rounds)


@attack(by_name, rounds=MANY)
def test_cve_2024_45310_racing_links_make_no_file_on_the_host(box, rounds):
    race(box, directory=False, rounds=rounds)


@attack(by_name)
def test_cve_2021_30465_racing_links_at_full_speed(tmp_path):
    """The same without a container around it, a thousand times a second."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "volume/a").mkdir(parents=True)
    outside.mkdir()
    (root / "volume/link").symlink_to("../" * 30 + str(outside)[1:])
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    made = 0
    with swapping(root / "volume/a", root / "volume/link"):
        for number in range(max(ROUNDS, 600)):
            with contextlib.suppress(OSError):
                os.close(targets.place(fd, f"/volume/a/new{number}", directory=bool(number % 2)))
                made += 1
    os.close(fd)
    reached(os.listdir(outside), "made on the host")
    assert made


@attack(by_name)
def test_cve_2025_24965_file_written_through_a_link(box):
    """A file that is made to be mounted on is made inside, although the image has a link there that leads out."""
    outside, source = box.folder / "outside", box.folder / "source"
    outside.mkdir()
    source.write_text("volume")
    (box.rootfs / "etc/resolv.conf").symlink_to(outside / "file")
    volume(box, source, "/etc/resolv.conf")
    said = tried(box, "/bin/true")
    reached(os.listdir(outside), "made on the host")
    assert "File exists" in said, "a link that leads nowhere is no place to mount on"


def cut_strings(monkeypatch, box) -> None:
    monkeypatch.setattr(launcher.spec, "check", nothing)
    monkeypatch.setattr(mount, "string", lambda value: libc.ffi.new("char[]", os.fsencode(value)))


@attack(cut_strings)
def test_cve_2021_43784_what_is_checked_is_what_is_used(box):
    """There the lengths of a message between two stages overflowed. Here none has any; what C would cut is refused."""
    source = box.folder / "source"
    source.mkdir()
    volume(box, source, "/mnt")
    box.config["mounts"][-1]["source"] = f"{source}\0/allowed"
    said = tried(box, "/bin/true")
    reached("refused" not in said, "C cut a name")
    assert "NUL" in said
    with pytest.raises(ValueError, match="NUL"):
        paths.openat2(-100, "a\0b", 0, resolve=0)


def test_cve_2021_43784_names_longer_than_a_message(box):
    """There is no defence to take away: no stage writes a length down, and it is the kernel that has a longest name."""
    volume(box, box.folder / ("a" * 70_000), "/mnt")
    assert "File name too long" in str(box.refused())


# Devices


def any_null(monkeypatch, box) -> None:
    monkeypatch.setattr(rootfs, "_node", lambda *_: True)
    monkeypatch.setattr(rootfs, "is_null", lambda _: True)


@attack(any_null, target="/proc/sys/kernel/hostname")
@pytest.mark.parametrize(
    "target", ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/etc/passwd", "zero"]
)
def test_cve_2025_31133_dev_null_of_the_image(box, target):
    """Masks bind /dev/null: an image's own, which is something else, must not be bound instead (youki: 2025-62161)."""
    without_mounts(box, "/dev")
    (box.rootfs / "dev/null").symlink_to(target)
    said = tried(box, "/bin/cat", "/proc/keys")
    reached("box" in said, "the mask of /proc/keys is another file")
    assert "/dev/null" in said


def dev_of_the_image(monkeypatch, box) -> None:
    any_null(monkeypatch, box)
    without_mounts(box, "/dev")


@attack(dev_of_the_image)
def test_cve_2025_31133_masks_hide_with_a_fresh_dev(box):
    (box.rootfs / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    said = box.sh("stat -c %t:%T /proc/keys; cat /proc/keys").out
    reached(said != "1:3\n", "the mask is the image's")


def console_anywhere(monkeypatch, box) -> None:
    monkeypatch.setattr(rootfs.procfs, "in_it", lambda _: False)


def shared_dev(box) -> Path:
    """A /dev that others can change: a volume, with a devpts of the container's own mounted in it."""
    dev = box.folder / "dev"
    (dev / "pts").mkdir(parents=True)
    (dev / "console").write_text("")
    for entry in box.config["mounts"]:
        if entry["destination"] == "/dev":
            entry.update(type="bind", source=str(dev), options=["bind"])
    without_mounts(box, "/dev/shm")
    without_mounts(box, "/dev/mqueue")
    box.process["terminal"] = True
    return dev


CONSOLE_IS = "stat -c %F /proc/sys/kernel/core_pattern >/result"


@attack(console_anywhere)
def test_cve_2025_52565_console_leads_into_proc(box):
    dev = shared_dev(box)
    (dev / "console").unlink()
    (dev / "console").symlink_to("/proc/sys/kernel/core_pattern")
    said = tried(box, "/bin/sh", "-c", CONSOLE_IS)
    result = box.rootfs / "result"
    reached(result.exists() and "character" in result.read_text(), "a terminal lies over the kernel's file")
    assert "/dev/console" in said


@attack(console_anywhere, rounds=MANY)
def test_cve_2025_52565_racing_for_the_console(box, rounds):
    dev, result = shared_dev(box), box.rootfs / "result"
    (dev / "other").symlink_to("/proc/sys/kernel/core_pattern")
    with swapping(dev / "console", dev / "other"):
        for _ in range(rounds):
            tried(box, "/bin/sh", "-c", CONSOLE_IS)
            reached(result.exists() and "character" in result.read_text(), "a terminal lies over the kernel's file")


def terminal_by_name(monkeypatch, box) -> None:
    """The multiplexer is what stands at its name."""
    monkeypatch.setattr(rootfs, "is_multiplexer", lambda _: True)


@attack(terminal_by_name)
def test_cve_2025_52565_terminal_of_the_image(box):
    """The terminal comes from the container's own devpts by descriptor: an image's /dev/pts cannot stand in for it."""
    without_mounts(box, "/dev")
    (box.rootfs / "dev/pts").mkdir()
    (box.rootfs / "dev/pts/ptmx").write_text("")
    box.process["terminal"] = True
    said = tried(box, "/bin/true")
    reached("Inappropriate ioctl" in said, "a file of the image is taken for the multiplexer")
    assert "not what the kernel made" in said


@attack(by_name, way="absolute")
@pytest.mark.parametrize("way", ["absolute", "relative", "/etc"])
def test_cve_2026_41579_dev_behind_a_link(box, way):
    """All of /dev is made beneath the root, wherever the image's link seems to lead (crun: CVE-2026-47766)."""
    outside = box.folder / "outside"
    outside.mkdir()
    target = {"absolute": str(outside), "relative": "../" * 12 + str(outside)[1:]}.get(way, way)
    without_mounts(box, "/dev")
    replace_by_link(box.rootfs / "dev", target)
    tried(box, "/bin/true")
    reached(os.listdir(outside), "devices and links on the host")
    assert not {"null", "zero", "pts", "ptmx", "fd", "stdin", "core"} & {*os.listdir("/etc")}


# Rights


def inheritable(monkeypatch, box) -> None:
    set_all = capabilities.set_all
    monkeypatch.setattr(
        capabilities,
        "set_all",
        lambda effective, permitted, _, ambient: set_all(effective, permitted, permitted, ambient),
    )


@attack(inheritable)
def test_cve_2022_29162_no_inheritable_capabilities(box):
    """crun 2022-27650, moby 2022-24769, runc 2022-29162, youki 2025-27612: by run and by exec."""
    script = ("/bin/grep", "CapInh", "/proc/self/status")
    first = box.start("/bin/sleep", "60")
    said = [box.exec(first, *script).out]
    box.group.remove()
    said.append(box.run(*script).out)
    for line in said:
        reached(int(line.split()[1], 16), "inheritable capabilities")


def as_once(monkeypatch, box) -> None:
    may(box, "CAP_SYS_ADMIN")
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "cgroup"]


@attack(as_once)
def test_cve_2022_0492_release_agent(box):
    """The root of a hierarchy, where the release agent is set, is not to be had; its own groups are read-only."""
    done = box.sh(
        "mount -t cgroup -o memory x /tmp || mount -t cgroup2 x /tmp; ls -d /tmp/cowshed /tmp/release_agent;"
        f" ls /sys/fs/cgroup/*/release_agent; echo 1 > {box.groups}/cgroup.procs"
    )
    reached("/tmp/cowshed" in done.out, "the root of the host's hierarchy")
    assert "denied" in done.err or "not permitted" in done.err
    assert "Read-only" in done.err
    assert done.out == ""


def hosts_groups(monkeypatch, box) -> None:
    def perform(step, scene) -> None:
        for hierarchy in box.group.layout.hierarchies():
            tree = mount.clone(hierarchy)
            step.attach(scene, tree, "/sys/fs/cgroup")
            os.close(tree)

    monkeypatch.setattr(mounting.Cgroup, "perform", perform)


@attack(hosts_groups)
def test_cve_2023_25809_groups_without_a_namespace_of_their_own(box):
    """Without a cgroup namespace the container sees its own groups alone, and read-only."""
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "cgroup"]
    done = box.sh(f"ls -d /sys/fs/cgroup/cowshed {box.groups}/cowshed; mkdir {box.groups}/x")
    reached("cowshed" in done.out, "the host's groups")
    assert "Read-only" in done.err


# What has no number


@pytest.mark.parametrize("kind", ["maskedPaths", "readonlyPaths"])
@pytest.mark.parametrize("path", ["/", "//", "/proc/..", "/link"])
def test_the_root_cannot_be_hidden_and_nobody_is_made_to_believe_it(box, kind, path):
    (box.rootfs / "link").symlink_to("/")
    box.linux[kind] = [path]
    assert "is the root" in str(box.refused())


def test_an_error_longer_than_a_pipe_holds_is_told(box):
    """Whoever sets a container up writes it while nobody reads: it must not wait for ever."""
    box.process["cwd"] = "/" + "a" * 200_000
    said = str(box.refused())
    assert said.endswith("File name too long")
    assert len(said) < 10_000


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_c_would_cut_or_no_file_system_has_is_refused(box, text):
    box.config["hostname"] = text
    assert box.refused().stage == "spec"


def test_nothing_goes_on_as_a_second_launcher(box, monkeypatch):
    """A child that cannot even say why it failed ends."""
    monkeypatch.setattr(launcher.cloning.Report, "failed", lambda *_: [][0])
    monkeypatch.setattr(identity, "become", lambda *_, **__: {}["failed"])
    assert box.run("/bin/true").status == 125


def test_process_1_has_no_descriptor_of_ours(box):
    box.config["annotations"] = {launcher.INIT_ANNOTATION: "true"}
    assert "denied" in box.run("/bin/cat", "/proc/1/environ").err
    may(box, "CAP_SYS_PTRACE")
    for _ in range(5):
        assert box.run("/bin/ls", "/proc/1/fd").out.split() == ["0", "1", "2"]


@pytest.mark.parametrize("one", of(__name__), ids=lambda one: f"{one.cve}-{one.test.__name__[14:]}")
def test_without_its_defence_the_attack_succeeds(one, request, monkeypatch, box):
    succeeds(one, request, monkeypatch, box)
