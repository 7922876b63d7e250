"""What the runtime's code must not contain, and what its processes must not do, wherever that stands.

A container's process runs our interpreter until it executes its program. By then the root is the image's: a module, a
library or a name that is looked up there can be the image's (CVE-2019-14271).
"""

import ast
import mmap
import sys
from pathlib import Path

import pytest

import cowshed_linux
import cowshed_runtime
from cowshed_linux import mount, process
from cowshed_runtime import launcher
from cowshed_runtime.errors import LaunchError

RUNTIME = Path(cowshed_runtime.__file__).parent
LINUX = Path(cowshed_linux.__file__).parent
# What runs in a container's process: not the command line, which goes on in the caller's.
OURS = sorted(path for path in RUNTIME.rglob("*.py") if "command" not in path.relative_to(RUNTIME).parts)
BELOW = sorted(LINUX.glob("*.py"))
NAMES_BY_STRING = {
    "realpath", "abspath", "walk", "fwalk", "makedirs", "removedirs", "renames", "get_exec_path", "execvp", "execvpe",
    "getlogin", "chroot",
}  # fmt: skip
NEVER = {
    "shutil", "pathlib", "glob", "tempfile", "subprocess", "traceback", "logging", "warnings", "pwd", "grp", "socket",
    "locale", "ctypes", "multiprocessing", "asyncio", "typing", "dataclasses", "json", "re",
}  # fmt: skip
# By strings, where these are no names of a container's
BY_STRING = {
    "group.py": {"makedirs"},  # control groups
    "systemd.py": {"makedirs"},  # control groups
    "criu.py": {"makedirs"},  # the caller's directories of images and logs
    "interpreter.py": {"realpath", "makedirs"},  # the interpreter's own place, before there is a container
    "launcher.py": {"chroot"},  # to `.`, for who joins a container that has its root in the host's mount namespace
    "rootfs.py": {"chroot"},  # to `.`, where there can be no pivot_root
}
# Imports inside functions: where that function never runs in a container, or not before its modules are there
LATE_IMPORTS = {
    "mount.py": {"_beneath_attached"},  # of storage drivers, on kernels before 6.15
    "process.py": {"aside"},  # of storage drivers
    "place.py": {"restore", "_scope"},  # of the launcher and the command, to make or find the groups
    "fastjson.py": {"loads"},  # of the launcher, for a document that is none
    "listing.py": {"table"},  # of commands that look at a container
    "bpf.py": {"_lift_memory_lock"},  # of the launcher, as it makes the groups
    "launcher.py": {"_agent", "for_devices"},  # of the launcher itself
    "seccomp.py": {"_decoded"},  # of the launcher, as it reads the configuration
}


def trees(paths):
    return [pytest.param(path, ast.parse(path.read_text()), id=path.name) for path in paths]


def is_of_types(node) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree):
    """(name, function that it stands in or "") of every import that is executed."""

    def walk(node, function):
        for child in ast.iter_child_nodes(node):
            if is_of_types(child):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module or "", function
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            yield from walk(child, inside)

    return list(walk(tree, ""))


@pytest.mark.parametrize(("path", "tree"), trees(OURS))
def test_no_name_inside_a_root_is_used_as_a_string(path, tree):
    """Names there are resolved by descriptor (targets, paths.open_in_root), never by what resolves strings."""
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & NAMES_BY_STRING
    assert used <= BY_STRING.get(path.name, set()), f"{path.name} uses {used}"
    costly = {name.partition(".")[0] for name, _ in imports(tree)} & NEVER
    assert costly <= {"fastjson.py": {"json"}, "listing.py": {"subprocess"}}.get(path.name, set())


@pytest.mark.parametrize(("path", "tree"), trees(OURS + BELOW))
def test_nothing_is_imported_late(path, tree):
    late = {function for name, function in imports(tree) if function}
    assert late <= LATE_IMPORTS.get(path.name, set()), f"{path.name} imports in {late}"


@pytest.mark.parametrize(("path", "tree"), trees(OURS + BELOW))
def test_libraries_are_loaded_in_two_places(path, tree):
    """The C library as this module is imported, libseccomp as a filter is compiled: before there is a container."""
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "dlopen"]
    assert not loads or (path.name in ("libc.py", "seccomp.py") and path.parent == LINUX)


@pytest.mark.parametrize(("path", "tree"), trees(OURS + BELOW))
def test_descriptors_close_on_exec(path, tree):
    """Those of Python do. What a container, or criu, is to have is made inheritable in one place."""
    makes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "set_inheritable"]
    given = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "inheritable"]
    assert not makes + given or path.name in ("identity.py", "criu.py")


@pytest.mark.parametrize(("path", "tree"), trees(OURS))
def test_no_process_ends_as_if_it_were_a_program(path, tree):
    """sys.exit and exit run what the engine has registered, and write its buffers a second time."""
    used = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not used & {"sys.exit", "exit", "quit", "atexit.register", "print"}


# What the interpreter does after the change of root


class Watch:
    """What a container's process imports, opens and loads once names mean what the image says: by an audit hook, which
    is installed in the launcher and cannot be taken away again. It tells by memory that is shared with this process."""

    def __init__(self, monkeypatch, box) -> None:
        self.told, self.armed = mmap.mmap(-1, 1 << 16), False
        pivot_root, setns, fork = mount.pivot_root, process.setns, box._fork

        def pivot(*arguments):
            pivot_root(*arguments)
            self.armed = True

        def enter(*arguments):
            setns(*arguments)
            self.armed = True

        def watched(work):
            def first(stdio):
                sys.addaudithook(self.hook)
                return work(stdio)

            return fork(first)

        monkeypatch.setattr(mount, "pivot_root", pivot)
        monkeypatch.setattr(process, "setns", enter)
        monkeypatch.setattr(box, "_fork", watched)

    def hook(self, event, arguments) -> None:
        if not self.armed:
            return
        if event in ("import", "ctypes.dlopen", "marshal.loads", "compile", "exec") or (
            event == "open" and str(arguments[0]).endswith((".py", ".pyc", ".so", ".pth", ".zip"))
        ):
            self.told.write(f"{event} {arguments[0]!r}\n".encode())

    def seen(self) -> list[str]:
        return self.told[:].rstrip(b"\0").decode().splitlines()


@pytest.fixture
def watch(monkeypatch, box):
    made = Watch(monkeypatch, box)
    yield made
    made.told.close()


def test_a_watch_sees(box, watch, monkeypatch):
    """Else what follows would be no proof."""
    monkeypatch.setattr(launcher.identity, "become", lambda *_, **__: __import__("colorsys"))
    monkeypatch.setattr(launcher.cloning, "forget_imports", lambda: None)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(LaunchError):
        box.start("/bin/true")
    assert "import 'colorsys'" in watch.seen()


def everything(box) -> None:
    """As much as one container can ask for."""
    hook = box.folder / "hook"
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    (box.rootfs / "etc/passwd").write_text("x:x:7:7::/home/x:/bin/sh\n")
    box.filtered = True
    box.config["annotations"] = {launcher.INIT_ANNOTATION: "true"}
    box.config["hooks"] = {
        "createContainer": [{"path": str(hook)}], "startContainer": [{"path": "/bin/true", "timeout": 5}],
    }  # fmt: skip
    box.config["domainname"] = "domain"
    box.linux["sysctl"] = {"kernel.msgmax": "4444", "net.ipv4.ip_forward": "1"}
    box.linux["devices"] = [{"path": "/dev/one/more", "type": "c", "major": 1, "minor": 3}]
    box.config["mounts"] += [
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]},
        {"destination": "/new/volume", "type": "bind", "source": str(box.folder), "options": ["rbind", "rro"]},
    ]
    box.process.update(
        cwd="/not/there/yet", terminal=True, consoleSize={"height": 7, "width": 70}, oomScoreAdj=5,
        noNewPrivileges=True, personality={"domain": "LINUX"}, user={"uid": 7, "gid": 7, "additionalGids": [8]},
        rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    )  # fmt: skip


def test_nothing_is_imported_opened_or_loaded_after_the_change_of_root(box, watch):
    everything(box)
    first = box.start("/bin/sleep", "60")
    box.exec(first, "/bin/true")
    box.exec(first, "true", user={"uid": 1, "gid": 1})
    assert watch.seen() == []


@pytest.mark.parametrize("words", [["nothing"], ["/bin/nothing"], ["/etc"], ["/bin/\udcff\udc80"], [""]])
def test_nor_as_it_fails(box, watch, words):
    everything(box)
    with pytest.raises(LaunchError):
        box.start(*words)
    first_fails = watch.seen()
    box.process["cwd"], box.config["hooks"] = "/proc/self/fd/3", {}
    with pytest.raises(LaunchError):
        box.start("/bin/true")
    assert watch.seen() == first_fails == []
