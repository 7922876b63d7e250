"""Containers of a plain user, who has no rights of his own but in a user namespace."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import cowshed_linux
import cowshed_runtime
from cowshed_linux import mount, process
from cowshed_runtime import launcher
from cowshed_runtime.cgroup import layout, place
from cowshed_runtime.command import state
from cowshed_runtime.fastjson import dumps

USER, FIRST = 3917, 700_000


class Plain:
    """A box that is started by a user with subordinate ids, of whom the host knows in a mount namespace only."""

    def __init__(self, box) -> None:
        self.box = box
        os.chown(box.folder, USER, USER)
        for path in (box.rootfs, *box.rootfs.rglob("*"), box.cache):
            os.lchown(path, USER, USER)
        for name, line in (
            ("passwd", f"cowshedtest:x:{USER}:{USER}::/:/bin/sh"), ("subuid", f"cowshedtest:{FIRST}:65536"),
            ("subgid", f"cowshedtest:{FIRST}:65536"),
        ):  # fmt: skip
            there = Path(f"/etc/{name}")
            (box.folder / name).write_text((there.read_text() if there.exists() else "") + line + "\n")
            (box.folder / name).chmod(0o644)
        box.linux["namespaces"].append({"type": "user"})
        box.config["root"]["path"] = "rootfs"
        for entry in box.config["mounts"]:
            entry["options"] = [word for word in entry["options"] if word != "gid=5"]
        self.map(1)

    def map(self, more: int) -> None:
        """His own id as root, and `more` - 1 subordinate ones."""
        for key in ("uidMappings", "gidMappings"):
            self.box.linux[key] = [{"containerID": 0, "hostID": USER, "size": 1}]
            if more > 1:
                self.box.linux[key].append({"containerID": 1, "hostID": FIRST, "size": more - 1})

    def _become(self) -> None:
        process.unshare(process.CLONE_NEWNS)
        mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
        for name in ("passwd", "subuid", "subgid"):
            if not os.path.exists(f"/etc/{name}"):
                pytest.skip(f"needs /etc/{name} (Debian: uidmap)")
            mount.mount(str(self.box.folder / name), f"/etc/{name}", None, mount.BIND)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        process.prctl(process.PR_SET_DUMPABLE, 1)  # as if he had executed a program

    def start(self, *words: str):
        box = self.box
        box.process["args"] = list(words)
        manner = launcher.Manner(bundle=str(box.folder))

        def work(stdio):
            for fd in stdio[1:]:
                os.fchown(fd, USER, USER)  # as if he had made them
            self._become()
            group = place.locate(box.config, box.group.name, rootless=True)
            return launcher.launch(box.config, -1, stdio, group=group, cache=str(box.cache), manner=manner)

        return box._fork(work)

    def sh(self, script: str):
        started = self.start("/bin/sh", "-c", script)
        out, err = started.read()
        return started.wait(), out.splitlines(), err

    def exec(self, first, *words: str, **changes):
        box = self.box
        work = {**box.process, "args": list(words), "terminal": False, **changes}

        def enter(stdio):
            self._become()
            group = place.locate(box.config, box.group.name, rootless=True)
            return launcher.join(work, box.linux, first.pid, stdio, group=group, cache=str(box.cache))

        started = box._fork(enter)
        return started.read()


@pytest.fixture
def plain(box):
    """In a folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="cowshed-rootless-", dir="/var/tmp"))
    folder.chmod(0o755)
    shutil.move(box.rootfs, folder / "rootfs")
    (folder / "cache").mkdir()
    box.folder, box.rootfs, box.cache = folder, folder / "rootfs", folder / "cache"
    yield Plain(box)
    for started in box.running:
        if started.status is None:
            os.kill(started.pid, 9)
    shutil.rmtree(folder)


def without(box, *kinds: str) -> None:
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] not in kinds]


def test_a_plain_user_is_root_in_his_container(plain):
    """With his one identity nobody else has to help him; nobody may leave a group then (CVE-2014-8989)."""
    status, lines, err = plain.sh("id -u; id -g; cat /proc/self/setgroups; touch /made; hostname; echo $$;"
                                  "stat -c %t:%T /dev/null; echo x > /dev/full; ls /sys/class/net")  # fmt: skip
    assert (status, lines) == (0, ["0", "0", "deny", "box", "1", "1:3", "lo"]), err
    assert "No space left" in err
    assert (plain.box.rootfs / "made").stat().st_uid == USER


def test_subordinate_ids(plain):
    """newuidmap(1) and newgidmap(1) map what the host's administrator has granted."""
    if not shutil.which("newuidmap"):
        pytest.skip("needs newuidmap (Debian: uidmap)")
    plain.map(2000)
    plain.box.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [7]}
    (plain.box.rootfs / "tmp").chmod(0o1777)
    status, lines, err = plain.sh("id; touch /tmp/made; echo again > /dev/stdout")
    assert (status, lines) == (0, ["uid=1000 gid=1000 groups=7", "again"]), err
    assert (plain.box.rootfs / "tmp/made").stat().st_uid == FIRST + 999


def test_ids_that_he_was_not_granted(plain):
    if not shutil.which("newuidmap"):
        pytest.skip("needs newuidmap (Debian: uidmap)")
    plain.map(100_000)
    with pytest.raises(Exception, match=r"subuid\(5\)") as caught:
        plain.start("/bin/true")
    assert caught.value.stage == "namespaces"


def test_without_a_user_namespace_he_has_no_rights(plain):
    without(plain.box, "user")
    del plain.box.linux["uidMappings"], plain.box.linux["gidMappings"]
    with pytest.raises(Exception, match="needs a user namespace") as caught:
        plain.start("/bin/true")
    assert caught.value.stage == "namespaces"


def test_terminal_of_a_plain_user(plain):
    plain.box.process["terminal"] = True
    started = plain.start("/bin/sh", "-c", "tty; stat -c %t:%T /dev/console; echo end")
    seen = b""
    while b"end" not in seen:
        seen += os.read(started.terminal, 4096)
    assert seen.decode().split() == ["/dev/pts/0", "88:0", "end"]
    started.wait()


def test_exec_of_a_plain_user(plain):
    first = plain.start("/bin/sh", "-c", "echo up; sleep 60")
    assert first.line() == "up"
    out, err = plain.exec(
        first, "/bin/sh", "-c", "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; ls /bin"
    )
    lines = out.split()
    assert lines[0] == "0", err
    assert lines[1] == lines[2] == os.readlink(f"/proc/{first.pid}/ns/user")
    assert "busybox" in lines
    os.kill(first.pid, 9)


def test_cve_2023_25809_no_groups_can_be_made_in_a_bound_sysfs(plain):
    """Without a network namespace sysfs is the host's, bound; without groups of his own so are the control groups. A
    user whose groups are delegated to him could write there, if that were not read-only."""
    without(plain.box, "network", "cgroup")
    status, lines, _ = plain.sh(
        "grep -c ' /sys' /proc/self/mountinfo; grep ' /sys' /proc/self/mountinfo | grep -v ' ro,';"
        "cd /sys/fs/cgroup; mkdir his */his; ls -d his */his; ls /sys/kernel | wc -l"
    )
    assert status == 0
    assert int(lines[0]) > 0
    assert lines[1:-1] == [], "mounts that can be written, or groups that were made"
    assert int(lines[-1]) > 3, "there is no sysfs"


def test_cve_2023_25809_control_groups_of_nobody(plain):
    """With all namespaces his own, there is what the host has, to look at."""
    _, lines, err = plain.sh("cd /sys/fs/cgroup; mkdir his */his; ls -d his; ls | wc -l")
    assert "his" not in lines, err
    assert int(lines[-1]) > 0


def test_proc_without_a_pid_namespace_is_the_hosts(plain):
    """What the kernel refuses to mount is bound: with the masks of the configuration on it."""
    without(plain.box, "pid")
    status, lines, err = plain.sh(
        "test -d /proc/self/fd && echo there; cat /proc/keys | wc -c; echo 5 > /proc/sys/vm/swappiness"
    )
    assert (status, lines) == (1, ["there", "0"]), err
    assert "Read-only" in err


def test_message_queues_without_an_ipc_namespace(plain):
    without(plain.box, "ipc")
    if not os.path.ismount("/dev/mqueue"):
        plain.box.config["mounts"] = [e for e in plain.box.config["mounts"] if e["type"] != "mqueue"]
    assert plain.sh("test -d /dev && echo there")[1] == ["there"]


def test_bind_mounts_of_a_plain_user(plain):
    folder = plain.box.folder / "volume"
    folder.mkdir()
    os.chown(folder, USER, USER)
    for name, options in (("rw", ["rbind"]), ("ro", ["rbind", "ro"])):
        plain.box.config["mounts"].append({"destination": f"/{name}", "source": "volume", "options": options})
    _, lines, err = plain.sh("touch /rw/made && ls /ro; touch /ro/x || echo kept")
    assert lines == ["made", "kept"], err


def needs_open(place: Path) -> None:
    closed = [folder for folder in place.parents if not folder.stat().st_mode & 1]
    if closed:
        pytest.skip(f"needs a checkout that everybody can read: not {closed[0]}")


def command(plain, *words: str, group: str = "") -> subprocess.CompletedProcess:
    """cowshed-runtime, executed by the user; group: of version 2, that he is moved into before."""
    program = Path(sys.executable).parent / "cowshed-runtime"
    needs_open(program)
    (plain.box.folder / "config.json").write_text(dumps(plain.box.config))

    def become() -> None:
        if group:
            Path(f"{group}/cgroup.procs").write_text("0")
        plain._become()

    line = [str(program), "--root", str(plain.box.folder / "state"), *words]
    return subprocess.run(line, preexec_fn=become, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_of_a_plain_user(plain):
    plain.box.process["args"] = ["/bin/sh", "-c", "id -u; exit 3"]
    done = command(plain, "run", "--bundle", str(plain.box.folder), "one")
    assert (done.returncode, done.stdout) == (3, "0\n"), done
    assert "one" not in os.listdir(plain.box.folder / "state")


def test_limits_of_a_plain_user_without_delegation(plain):
    """Explicit limits that nobody can keep are an error, and no container that seems to be limited."""
    if layout.host.v2 and not layout.host.v1:
        pytest.skip("needs version 1 of control groups, in which nothing is delegated")
    plain.box.linux["resources"]["memory"] = {"limit": 64 << 20}
    plain.box.process["args"] = ["/bin/true"]
    done = command(plain, "run", "--bundle", str(plain.box.folder), "one")
    assert done.returncode
    assert "memory" in done.stderr


@pytest.mark.parametrize("own", [False, True])
def test_cve_2019_5736_interpreter_of_a_plain_user(plain, own):
    """His containers can write what he can: an interpreter of his own is executed from a copy that is sealed."""
    needs_open(Path(cowshed_runtime.__file__))
    folder = plain.box.folder / "python"
    (folder / "bin").mkdir(parents=True)
    real = os.path.realpath(sys.executable)
    shutil.copy(real, folder / "bin/python3")
    (folder / "pyvenv.cfg").write_text(f"home = {os.path.dirname(real)}\n")
    if own:
        os.chown(folder / "bin/python3", USER, USER)
    paths = [str(Path(package.__file__).parents[1]) for package in (cowshed_runtime, cowshed_linux)]
    script = (
        f"import sys; sys.path[:0] = {[*paths, *(p for p in sys.path if 'site-packages' in p)]!r}\n"
        "import os; from cowshed_runtime import interpreter; interpreter.protect()\n"
        "print(os.readlink('/proc/self/exe'), flush=True)\n"
        "os.chmod('/proc/self/exe', 0o777); os.truncate('/proc/self/exe', 0)\n"
    )
    done = subprocess.run([str(folder / "bin/python3"), "-IS", "-c", script], preexec_fn=plain._become,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode, "it could be changed"
    assert done.stdout.startswith("/memfd:cowshed-runtime" if own else str(folder)), done
    assert (folder / "bin/python3").stat().st_size == os.stat(real).st_size


@pytest.mark.guest
def test_limits_of_a_plain_user_in_a_group_that_is_his(plain):
    """Version 2 of control groups, a part of which is delegated to him (cgroups(7), Delegation)."""
    if layout.host.v1 or not layout.host.v2:
        pytest.skip("needs version 2 of control groups alone")
    top = Path(layout.host.v2)
    (top / "cgroup.subtree_control").write_text("+memory +pids")
    base = top / f"rootless-{os.getpid()}"
    (base / "own").mkdir(parents=True)
    for path in (base, base / "own", *(base / f"cgroup.{name}" for name in ("procs", "subtree_control", "threads")),
                 base / "own/cgroup.procs"):  # fmt: skip
        os.chown(path, USER, USER)
    plain.box.linux["resources"].update(memory={"limit": 64 << 20}, pids={"limit": 33})
    plain.box.process["args"] = ["/bin/sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; id -u"]
    try:
        done = command(plain, "run", "--bundle", str(plain.box.folder), "one", group=str(base / "own"))
        assert (done.returncode, done.stdout.split()) == (0, [str(64 << 20), "33", "0"]), done
    finally:
        for folder in (*sorted(base.rglob("*/"), reverse=True), base):
            if folder.is_dir():
                folder.rmdir()


@pytest.mark.parametrize(
    ("user", "inside", "name", "wanted"),
    [
        (0, False, "root", "/run"),
        (0, False, "one", "/run"),
        (7, False, "one", "/his"),
        (0, True, "one", "/his"),  # as rootless podman calls it
        (0, True, None, "/his"),
        (0, True, "root", "/run"),  # root of a container
    ],
)
def test_where_the_states_of_containers_are(monkeypatch, user, inside, name, wanted):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/his")
    monkeypatch.delenv("USER", raising=False)
    if name:
        monkeypatch.setenv("USER", name)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(state, "plain", lambda: bool(user) or inside)
    assert state.root(SimpleNamespace(root=None)) == f"{wanted}/cowshed-runtime"
    assert state.root(SimpleNamespace(root="/given")) == "/given"


# ------------------------------------------------------------ a systemd of his own

_MANAGER = """
for name in passwd subuid subgid; do mount --bind $1/$name /etc/$name; done
cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
chown $2 . cgroup.procs cgroup.subtree_control cgroup.threads
exec setpriv --reuid $2 --regid $2 --clear-groups /lib/systemd/systemd --user
"""


class Manager:
    """A systemd of a plain user, which a service of the real one runs as user@.service does, without a login."""

    def __init__(self, plain) -> None:
        self.plain, self.run = plain, plain.box.folder / "run"
        self.run.mkdir(mode=0o700)
        os.chown(self.run, USER, USER)
        self.unit = f"cowshedtest-{os.getpid()}.service"
        self.variables = {"XDG_RUNTIME_DIR": str(self.run), "HOME": str(plain.box.folder), "PATH": os.environ["PATH"]}
        made = [f"--setenv={name}={value}" for name, value in self.variables.items()]
        words = ["systemd-run", "--quiet", "--collect", f"--unit={self.unit}", "-pType=notify", "-pDelegate=yes",
                 "-pDefaultDependencies=no", *made]  # fmt: skip
        script = ["unshare", "-m", "sh", "-euc", _MANAGER, "sh", str(plain.box.folder), str(USER)]
        subprocess.run([*words, "--", *script], check=True)

    def as_user(self, *words, **variables) -> subprocess.CompletedProcess:
        """Its streams are files, which a container that stays may keep."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                [str(word) for word in words], preexec_fn=self.plain._become, env={**self.variables, **variables},
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=300, check=False,
            )  # fmt: skip
            texts = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
        return subprocess.CompletedProcess(words, done.returncode, *texts)

    def runtime(self, *words, **variables) -> subprocess.CompletedProcess:
        """The command, in a service of his systemd: that can move only what it has started itself."""
        program = Path(sys.executable).parent / "cowshed-runtime"
        needs_open(program)
        (self.plain.box.folder / "config.json").write_text(dumps(self.plain.box.config))
        made = [f"--setenv={name}={value}" for name, value in variables.items()]
        line = ["systemd-run", "--user", "--quiet", "--collect", "--wait", "--pipe", *made, "--"]
        return self.as_user(*line, program, "--root", self.plain.box.folder / "state", "--systemd-cgroup", *words)

    def shown(self, unit: str, *names: str) -> dict[str, str]:
        done = self.as_user("systemctl", "--user", "show", unit, *(f"-p{name}" for name in names))
        assert done.returncode == 0, done
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    def close(self) -> None:
        subprocess.run(["systemctl", "stop", self.unit], check=True)


@pytest.fixture
def manager(plain):
    if not os.path.exists("/run/systemd/private"):
        pytest.skip("needs a running systemd")
    if layout.host.v1 or not layout.host.v2:
        pytest.skip("needs version 2 of control groups alone")
    made = Manager(plain)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.guest
def test_real_systemd_of_a_plain_user(plain, manager):
    """His containers are scopes of his systemd, with limits (--systemd-cgroup of a user that is not root)."""
    plain.map(2000)
    plain.box.linux["resources"].update(memory={"limit": 64 << 20}, pids={"limit": 33})
    plain.box.process["args"] = ["/bin/sleep", "1000"]
    done = manager.runtime("create", "--bundle", plain.box.folder, "one")
    assert done.returncode == 0, done
    try:
        wanted = {"ActiveState": "active", "Delegate": "yes", "MemoryMax": str(64 << 20), "TasksMax": "33"}
        assert manager.shown("cowshed-one.scope", *wanted) == wanted
        assert manager.runtime("start", "one").returncode == 0
        group = manager.shown("cowshed-one.scope", "ControlGroup")["ControlGroup"]
        assert f"/{manager.unit}/user.slice/cowshed-one.scope" in group
        folder = Path(layout.host.v2 + group)
        assert (folder / "memory.max").read_text() == f"{64 << 20}\n"
        assert folder.stat().st_uid == USER
        done = manager.runtime("exec", "one", "cat", "/proc/1/cgroup", "/proc/self/cgroup", "/sys/fs/cgroup/pids.max")
        assert (done.returncode, done.stdout.split()) == (0, ["0::/", "0::/", "33"]), done
        assert manager.runtime("update", "--pids-limit", "40", "one").returncode == 0
        assert manager.shown("cowshed-one.scope", "TasksMax") == {"TasksMax": "40"}
        assert (folder / "pids.max").read_text() == "40\n"
    finally:
        done = manager.runtime("delete", "--force", "one")
    assert done.returncode == 0, done
    assert manager.shown("cowshed-one.scope", "LoadState") == {"LoadState": "not-found"}
    assert not folder.exists()


@pytest.mark.guest
def test_real_systemd_of_a_plain_user_by_way_of_his_bus(plain, manager):
    """Where systemd's own socket is not to be had, as in a container that is given the bus alone."""
    plain.box.linux["resources"]["pids"] = {"limit": 33}
    plain.box.process["args"] = ["/bin/cat", "/sys/fs/cgroup/pids.max"]
    there = {"XDG_RUNTIME_DIR": "/nowhere", "DBUS_SESSION_BUS_ADDRESS": f"unix:path={manager.run}/bus"}
    done = manager.runtime("run", "--bundle", plain.box.folder, "one", **there)
    assert (done.returncode, done.stdout) == (0, "33\n"), done
    done = manager.runtime("run", "--bundle", plain.box.folder, "one", **{**there, "DBUS_SESSION_BUS_ADDRESS": ""})
    assert "this user's systemd cannot be reached" in done.stderr
