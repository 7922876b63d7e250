"""Launching: streams, status, identity, what a container sees."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from cowshed_linux import process
from cowshed_runtime.cgroup.group import Group


def test_output_status_and_arguments(box):
    done = box.sh("echo out; echo err >&2; exit 7")
    assert (done.status, done.out, done.err) == (7, "out\n", "err\n")


def test_program_is_found_in_the_containers_path(box):
    box.process["env"] = ["PATH=/nowhere:/bin", "A=b=c"]
    assert box.run("env").out.splitlines() == ["PATH=/nowhere:/bin", "A=b=c", "HOME=/"]


def test_programs_that_cannot_be_executed(box):
    (box.rootfs / "bin/plain").write_text("no program")
    (box.rootfs / "bin/script").write_text("#!/nowhere/interpreter\n")
    (box.rootfs / "bin/garbage").write_bytes(b"\x7fnot ELF")
    for name in ("script", "garbage"):
        (box.rootfs / "bin" / name).chmod(0o755)
    said = {word: box.refused(word) for word in ("nothing", "/bin/nothing", "plain", "/bin/plain", "script", "garbage")}
    assert {word: error.status for word, error in said.items()} == {
        "nothing": 127,
        "/bin/nothing": 127,
        "plain": 126,
        "/bin/plain": 126,
        "script": 127,
        "garbage": 126,
    }
    assert "not found in PATH" in str(said["nothing"])
    assert "interpreter" in str(said["script"])


def test_namespaces_are_new(box):
    kinds = ("pid", "ipc", "uts", "mnt", "net", "cgroup")
    done = box.sh("; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds))
    for kind, seen in zip(kinds, done.out.split(), strict=True):
        assert seen != os.readlink(f"/proc/self/ns/{kind}")


def test_first_process_sees_itself_and_its_loopback(box):
    done = box.sh("echo $$; hostname; cat /sys/class/net/lo/flags; grep -c . /proc/net/dev")
    pid, host, flags, _ = done.out.split()
    assert (pid, host) == ("1", "box")
    assert int(flags, 16) & 1, "lo is down"


def test_shared_network_namespace_by_path(box):
    box.linux["namespaces"] = [
        {"type": kind} if kind != "network" else {"type": kind, "path": "/proc/self/ns/net"}
        for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup")
    ]
    assert box.run("/bin/readlink", "/proc/self/ns/net").out.strip() == os.readlink("/proc/self/ns/net")


def test_host_namespaces(box):
    box.linux["namespaces"] = [{"type": "mount"}, {"type": "uts"}]
    done = box.sh("readlink /proc/self/ns/pid /proc/self/ns/net 2>&1; readlink /proc/self/ns/net")
    assert os.readlink("/proc/self/ns/net") in done.out


def test_pid_namespace_by_path(box):
    first = box.start("/bin/sleep", "60")
    box.linux["namespaces"] = [
        {"type": kind} if kind != "pid" else {"type": kind, "path": f"/proc/{first.pid}/ns/pid"}
        for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup")
    ]
    first_group, box.group = box.group, Group(box.group.name + "b")
    try:
        done = box.sh("readlink /proc/self/ns/pid; readlink /proc/1/ns/pid; echo $$")
        inner, one, pid = done.out.split()
        assert inner == one
        assert pid != "1"
    finally:
        first_group.remove()


def test_wrong_namespace_by_path_is_refused(box):
    box.linux["namespaces"] = [{"type": "mount"}, {"type": "network", "path": "/proc/self/ns/uts"}]
    box.config.pop("hostname")
    error = box.refused()
    assert error.stage == "namespaces"
    assert "/proc/self/ns/uts" in str(error)


def test_mounts_of_a_container(box):
    done = box.sh("cat /proc/self/mountinfo")
    found = {line.split()[4]: line for line in done.out.splitlines()}
    for path in ("/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/proc/sys"):
        assert path in found, path
    assert re.search(r" ro[, ]", found["/sys"])
    assert re.search(r" ro[, ]", found["/proc/sys"])
    for path in ("/proc", "/dev/shm", "/sys"):
        for word in ("nosuid", "nodev", "noexec"):
            assert word in found[path], (path, word)


def test_cgroup_mount_shows_own_groups_only(box):
    done = box.sh(f"cat /proc/self/cgroup {box.groups}/cgroup.procs; ls {box.groups} | grep cowshed")
    for line in done.out.splitlines():
        if ":" in line and "::" not in line:
            assert line.endswith(":/"), line
    assert "1" in done.out.splitlines()
    assert done.status == 1, "the parent group can be seen"


def test_devices(box):
    box.linux["devices"] = [
        {"path": "/dev/extra", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/other/fifo", "type": "p"},
    ]
    done = box.sh(
        "head -c 4 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; echo x > /dev/null; stat -c '%n %t:%T %a %u %g'"
        " /dev/null /dev/tty /dev/extra; stat -c %F /other/fifo; readlink /dev/fd; readlink /dev/ptmx"
    )
    lines = done.out.splitlines()
    assert lines[:2] == ["4", "3"]
    assert lines[2:5] == ["/dev/null 1:3 666 0 0", "/dev/tty 5:0 666 0 0", "/dev/extra 1:5 640 7 8"]
    assert lines[5] == "fifo"
    assert "/proc/self/fd" in lines
    assert "pts/ptmx" in lines


def test_a_device_that_is_not_allowed_cannot_be_opened(box):
    done = box.sh("mknod /tmp/kmsg c 1 11 && echo made; head -c 1 /tmp/kmsg || echo refused")
    assert done.out.split() == ["made", "refused"], done
    assert "not permitted" in done.err


def test_read_only_root_and_tmpfs(box):
    box.config["root"]["readonly"] = True
    box.config["mounts"].append(
        {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=1777"]}
    )
    done = box.sh("touch /file; touch /scratch/file && echo written; dd if=/dev/zero of=/scratch/big bs=1k count=100")
    assert done.out == "written\n"
    assert "Read-only file system" in done.err
    assert "No space left" in done.err


def test_tmpfs_is_filled_with_what_it_hides(box):
    (box.rootfs / "etc/deep").mkdir()
    (box.rootfs / "etc/deep/file").write_text("there")
    (box.rootfs / "etc/deep/file").chmod(0o640)
    (box.rootfs / "etc/link").symlink_to("deep/file")
    box.config["mounts"].append({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]})
    done = box.sh("cat /etc/link; stat -c %a /etc/deep/file; touch /etc/new")
    assert (done.status, done.out) == (0, "there640\n")
    assert not (box.rootfs / "etc/new").exists()


def test_bind_mounts(box, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "inside").write_text("1")
    file.write_text("2")
    for destination, source, options in (
        ("/mnt/rw", folder, ["rbind"]),
        ("/mnt/ro", folder, ["bind", "ro", "nosuid"]),
        ("/etc/single", file, ["bind", "ro"]),
    ):
        box.config["mounts"].append(
            {"destination": destination, "type": "bind", "source": str(source), "options": options}
        )
    done = box.sh("cat /mnt/ro/inside /etc/single; touch /mnt/rw/new; touch /mnt/ro/new2; echo x > /etc/single")
    assert done.out == "12"
    assert (folder / "new").exists()
    assert not (folder / "new2").exists()
    assert file.read_text() == "2"


def test_missing_source_of_a_bind_mount(box):
    box.config["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]})
    error = box.refused()
    assert "bind /no/such at /x" in str(error)
    assert "No such file" in str(error)


def test_recursive_read_only_reaches_mounts_below(box, tmp_path):
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    box.config["mounts"] += [
        {"destination": "/data", "type": "bind", "source": str(outer), "options": ["rbind", "rro"]},
    ]
    done = box.sh("touch /data/inner/x || echo refused")
    assert done.out == "refused\n"


def test_unknown_file_system_says_so(box):
    box.config["mounts"].append({"destination": "/x", "type": "nonesuchfs", "source": "none"})
    assert "nonesuchfs" in str(box.refused())


def test_user_groups_umask_and_home_directory(box):
    box.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 27], "umask": 0o027}
    box.process["capabilities"] = {"bounding": ["CAP_KILL"]}
    box.process["cwd"] = "/tmp"
    (box.rootfs / "tmp").chmod(0o1777)
    done = box.sh("id; umask; pwd; touch file; stat -c '%a %u %g' file; grep Cap /proc/self/status")
    lines = done.out.splitlines()
    assert "uid=1000 gid=1001 groups=1001,5,27" in lines[0].replace("groups=5,27", "groups=1001,5,27")
    assert lines[1:4] == ["0027", "/tmp", "640 1000 1001"]
    sets = dict(line.split(":\t") for line in lines[4:])
    assert {name: int(value, 16) for name, value in sets.items()} == {
        "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 1 << 5, "CapAmb": 0,
    }  # fmt: skip


def test_a_user_may_open_his_own_output_again(box):
    box.process["user"] = {"uid": 1000, "gid": 1000}
    assert box.sh("echo again > /dev/stdout").out == "again\n"


def test_capabilities_of_root(box):
    done = box.sh("grep Cap /proc/self/status")
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in done.out.splitlines()}
    assert sets["CapEff"] == sets["CapPrm"] == sets["CapBnd"]
    assert sets["CapInh"] == sets["CapAmb"] == 0
    assert not sets["CapEff"] >> 21 & 1, "CAP_SYS_ADMIN"


@pytest.mark.parametrize("filtered", [False, True])
def test_ambient_capabilities_of_a_user(box, filtered):
    box.process["user"] = {"uid": 1000, "gid": 1000}
    names = ["CAP_NET_BIND_SERVICE"]
    box.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), names)
    box.filtered = filtered
    done = box.sh("grep Cap /proc/self/status")
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in done.out.splitlines()}
    assert set(sets.values()) == {1 << 10}


def test_a_profile_that_this_kernel_does_not_have_is_refused(box):
    """Whether it runs AppArmor or not; what profiles do is tested where it does (tests/e2e/test_apparmor.py)."""
    box.process["apparmorProfile"] = "cowshed-no-such"
    error = box.refused()
    assert error.stage == "apparmor"
    assert "AppArmor profile cowshed-no-such" in str(error)


def test_no_new_privileges(box):
    box.process["noNewPrivileges"] = True
    assert "1" in box.sh("grep NoNewPrivs /proc/self/status").out


def test_limits_are_set_and_clamped_to_what_the_host_allows(box):
    box.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_MEMLOCK", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    done = box.sh("grep -e 'Max open files' -e 'Max core' /proc/self/limits")
    assert [line.split()[-3:-1] for line in done.out.splitlines()] == [["0", "0"], ["100", "200"]]


def test_signals_are_as_new(box):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        done = box.run("/bin/grep", "-e", "SigBlk", "-e", "SigIgn", "/proc/self/status")
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert {int(line.split()[1], 16) for line in done.out.splitlines()} == {0}


def test_no_descriptor_but_three(box):
    extra = os.open("/", os.O_RDONLY)
    os.set_inheritable(extra, True)
    try:
        done = box.sh("ls /proc/self/fd | wc -l; ls -l /proc/1/fd")
    finally:
        os.close(extra)
    assert int(done.out.split()[0]) == 4, done  # and the directory that ls reads
    assert " -> /\n" not in done.out


def test_masked_and_read_only_paths(box):
    done = box.sh(
        "cat /proc/keys /proc/interrupts | wc -c; ls /sys/firmware | wc -w; stat -c %t:%T /proc/keys;"
        "echo 9 > /proc/sys/vm/swappiness"
    )
    assert done.out.split() == ["0", "0", "1:3"]
    assert "Read-only" in done.err


def test_sysctl_of_the_containers_namespaces(box):
    host = Path("/proc/sys/kernel/msgmax").read_text()
    box.linux["sysctl"] = {"kernel.msgmax": "4321", "net.ipv4.ip_unprivileged_port_start": "80"}
    done = box.sh("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start")
    assert done.out.split() == ["4321", "80"], done
    assert Path("/proc/sys/kernel/msgmax").read_text() == host


def test_working_directory_is_made(box):
    box.process["cwd"] = "/srv/new/deep"
    assert box.run("/bin/sh", "-c", "pwd").out == "/srv/new/deep\n"


def test_working_directory_that_is_a_file(box):
    box.process["cwd"] = "/bin/busybox"
    assert box.refused().status == 126


def test_terminal(box):
    box.process["terminal"] = True
    box.process["consoleSize"] = {"height": 33, "width": 77}
    started = box.start(
        "/bin/sh", "-c", "tty; stty size; test -t 0 && test -t 1 && echo yes; stat -c %t:%T /dev/console; ps"
    )
    seen = b""
    while True:
        try:
            block = os.read(started.terminal, 4096)
        except OSError:  # EIO: the last slave is closed
            break
        seen += block
    lines = seen.decode().splitlines()
    assert lines[:4] == ["/dev/pts/0", "33 77", "yes", "88:0"], seen
    assert started.wait() == 0


def test_interrupt_key_of_a_terminal(box):
    box.process["terminal"] = True
    started = box.start("/bin/sh", "-c", "trap 'echo caught; exit 3' INT; echo ready; while true; do sleep 0.05; done")
    seen = b""
    while b"ready" not in seen:
        seen += os.read(started.terminal, 4096)
    os.write(started.terminal, b"\x03")
    assert started.wait() == 3


def test_init_reaps_forwards_and_gives_the_status(box):
    box.config["annotations"] = {"cowshed.init": "true"}
    started = box.start("/bin/sh", "-c", "(sleep 0.01 &); trap 'exit 9' TERM; echo $$; while true; do sleep 0.02; done")
    assert started.line() == "2"
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait() == 9


def test_init_ends_by_the_signal_of_its_child(box):
    box.config["annotations"] = {"cowshed.init": "true"}
    assert box.sh("kill -9 $$").status == 137


def test_init_reaps_orphans(box):
    box.config["annotations"] = {"cowshed.init": "true"}
    done = box.sh("(sh -c 'sleep 0.01 & exit' &) ; sleep 0.2; cat /proc/[0-9]*/status | grep -c '^State:.Z'")
    assert done.out.strip() == "0"


def test_init_has_no_more_rights_than_the_container(box):
    box.config["annotations"] = {"cowshed.init": "true"}
    box.filtered = True
    done = box.sh(
        "grep -e CapEff -e Seccomp: /proc/1/status; grep -e CapEff -e Seccomp: /proc/self/status; ls /proc/1/fd | wc -l"
    )
    lines = done.out.splitlines()
    assert lines[:2] == lines[2:4]
    assert "Seccomp:\t2" in lines
    assert lines[4] == "3"


def test_init_with_a_terminal_gives_the_foreground_away(box):
    box.config["annotations"] = {"cowshed.init": "true"}
    box.process["terminal"] = True
    started = box.start("/bin/sh", "-c", "read x; echo got $x")
    os.write(started.terminal, b"word\n")
    seen = b""
    while b"got word" not in seen:
        seen += os.read(started.terminal, 4096)
    assert started.wait() == 0


def test_exec_joins_everything(box):
    box.filtered = True
    first = box.start("/bin/sh", "-c", "touch /tmp/mark; echo up; sleep 60")
    assert first.line() == "up"
    script = (
        "ls /tmp; hostname; grep Seccomp: /proc/self/status; readlink /proc/self/ns/net; readlink /proc/1/ns/net;"
        "cat /proc/self/cgroup"
    )
    done = box.exec(first, "/bin/sh", "-c", script, cwd="/tmp")
    lines = done.out.splitlines()
    assert lines[0] == "mark"
    assert lines[1] == "box"
    assert lines[2] == "Seccomp:\t2"
    assert lines[3] == lines[4] != os.readlink("/proc/self/ns/net")
    assert all(line.endswith(":/") for line in lines if line[0].isdigit() and "::" not in line)
    box.group.kill()
    assert first.wait() == 137


def test_exec_status_user_and_missing_program(box):
    first = box.start("/bin/sleep", "60")
    done = box.exec(first, "/bin/sh", "-c", "id -u; exit 5", user={"uid": 12, "gid": 13}, capabilities={})
    assert (done.status, done.out) == (5, "12\n")
    with pytest.raises(Exception, match="not found") as caught:
        box.exec(first, "nothing")
    assert caught.value.status == 127


def test_exec_with_a_terminal(box):
    first = box.start("/bin/sleep", "60")
    started = box.exec_start(first, "/bin/sh", "-c", "tty; test -t 2 && echo yes", terminal=True)
    seen = b""
    while b"yes" not in seen:
        seen += os.read(started.terminal, 4096)
    assert b"/dev/pts/0" in seen
    started.wait()


def test_exec_in_a_container_that_has_ended(box):
    first = box.start("/bin/true")
    first.wait()
    with pytest.raises(Exception, match="not running"):
        box.exec(first, "/bin/true")


def test_root_by_path(box):
    from cowshed_runtime import launcher

    box.process["args"] = ["/bin/ls", "/"]
    box.config["root"]["path"] = str(box.rootfs)
    started = box._fork(lambda stdio: launcher.launch(box.config, -1, stdio, group=box.group, cache=str(box.cache)))
    assert "bin" in started.read()[0].split()


def test_a_dead_launcher_leaves_no_container(box):
    """The first process notices that nobody waits for it, and ends instead of running unwatched."""
    from cowshed_linux import mount
    from cowshed_runtime import launcher

    box.process["args"] = ["/bin/sleep", "60"]
    hook = box.folder / "hook"
    hook.write_text(f"#!/bin/sh\n: > {box.folder}/up\nread line < {box.folder}/fifo\n")
    hook.chmod(0o755)
    os.mkfifo(box.folder / "fifo")
    box.config["hooks"] = {"createRuntime": [{"path": str(hook)}]}
    root = mount.clone(str(box.rootfs))
    helper = os.fork()
    if helper == 0:
        try:
            launcher.launch(box.config, root, (0, 1, 2), group=box.group, cache=str(box.cache))
        finally:
            os._exit(0)
    os.close(root)
    deadline = time.monotonic() + 30
    while not (box.folder / "up").exists():  # the first process waits for the hook now
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    (first,) = box.group.processes()
    os.kill(helper, 9)
    os.waitpid(helper, 0)
    with open(box.folder / "fifo", "w") as f:
        f.write("go\n")
    _, status = os.waitpid(first, process.WALL)
    assert os.waitstatus_to_exitcode(status) != 0
