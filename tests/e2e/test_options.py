"""The options of run, create, exec and their like, one by one, as a user tries them."""

import json
import os
import subprocess
import time

import pytest

pytestmark = pytest.mark.usefixtures("empty")


@pytest.fixture
def empty(shop):
    yield
    for name in shop.ok("ps", "-aq").split():
        shop.ok("rm", "-fv", name)


def sh(shop, *words, **how):
    *options, script = words
    return shop.ok("run", "--rm", *options, shop.image, "sh", "-c", script, **how)


def refused(shop, *words) -> str:
    """The one line that a wrong option gives, before anything is made."""
    done = shop(*words)
    assert done.returncode == 125, done
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, done
    assert shop.names() == []
    return lines[0]


def test_the_driver_is_chosen_before_and_behind_the_command(shop):
    shop.driver = None
    try:
        for words in (["run", "--rm", "--driver", "copy"], ["--driver", "copy", "run", "--rm"]):
            assert "/drivers/copy/" in shop.ok(*words, shop.image, "grep", " / rw", "/proc/self/mountinfo")
        shop.ok("create", "--driver=copy", "--name", "cc", shop.image, "true")
        assert shop.ok("inspect", "-f", "{{.GraphDriver.Name}} {{.Driver}}", "cc").split() == ["copy", "copy"]
        assert "/drivers/overlay/" in shop.ok(
            "run", "--rm", "--driver", "overlay", shop.image, "grep", " / rw", "/proc/self/mountinfo"
        )
    finally:
        shop.driver = "overlay"


def test_environment(shop, tmp_path):
    (tmp_path / "env").write_text("# comment\n\nFILE=1\nBOTH=file\nHERE\nSPACED= a \n")
    words = ["run", "--rm", "-e", "BOTH=flag", "--env-file", str(tmp_path / "env"), "-e", "EMPTY=", "-e", "ABSENT"]
    told = shop(*words, "-e", "GREETING=bye", shop.image, "env", env={"HERE": "yes"}).stdout.decode().splitlines()
    assert {"FILE=1", "BOTH=flag", "HERE=yes", "EMPTY=", "SPACED= a ", "GREETING=bye", "HOME=/root"} <= {*told}
    assert not [line for line in told if line.startswith("ABSENT")]
    (tmp_path / "env").write_text("A =1\n")
    assert "is no name" in refused(shop, "run", "--env-file", str(tmp_path / "env"), shop.image, "env")


def test_entry_points(shop):
    assert shop.ok("run", "--rm", "--entrypoint", "echo", shop.image, "a", "-n") == "a -n\n"
    assert shop.ok("run", "--rm", "--entrypoint", "", shop.image, "echo", "b") == "b\n"
    assert "no command" in refused(shop, "run", "--rm", "--entrypoint", "", shop.image)


def test_capabilities(shop):
    def effective(*options):
        return int(sh(shop, *options, "grep CapEff /proc/self/status").split()[1], 16)

    assert effective("--cap-drop", "ALL") == 0
    assert effective("--cap-drop", "all", "--cap-add", "chown") == 1
    assert effective("--cap-add", "CAP_SYS_ADMIN") & 1 << 21
    everything = effective("--privileged")
    assert effective("--cap-add", "ALL", "--cap-drop", "sys_admin") == everything & ~(1 << 21)
    assert "no capability FLY" in refused(shop, "run", "--cap-add", "FLY", shop.image)


def test_what_a_container_is_not_given_is_told(pulled):
    words = pulled.words("run", "--cap-add", "SYS_TIME", "--name", "made", "-d", pulled.image, "sleep", "1000")
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_time", *words], capture_output=True, text=True, env=pulled.env, timeout=60
    )
    assert (done.returncode, len(done.stdout.split())) == (0, 1), done
    told = "cowshed: warn: capability CAP_SYS_TIME is not granted: this runtime does not have it itself\n"
    assert done.stderr == told
    words = pulled.words("run", "--rm", "--privileged", pulled.image, "grep", "CapEff", "/proc/self/status")
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_time", *words], capture_output=True, text=True, env=pulled.env, timeout=60
    )
    assert done.stderr == ""
    assert not int(done.stdout.split()[1], 16) >> 25 & 1
    pulled.ok("rm", "-f", "made")


def test_security_options(shop):
    assert sh(shop, "--security-opt", "no-new-privileges", "grep NoNewPrivs /proc/self/status").split()[1] == "1"
    assert sh(shop, "--security-opt", "seccomp=unconfined", "grep ^Seccomp: /proc/self/status").split()[1] == "0"
    assert sh(shop, "--security-opt", "apparmor=unconfined", "--security-opt", "label=disable", "echo up") == "up\n"
    assert "AppArmor" in refused(shop, "run", "--security-opt", "apparmor=mine", shop.image, "true")
    assert "SELinux" in refused(shop, "run", "--security-opt", "label=type:x_t", shop.image, "true")
    assert "not known" in refused(shop, "run", "--security-opt", "magic=on", shop.image, "true")


def test_a_seccomp_profile_of_ones_own(shop, tmp_path):
    only_for_some = {"includes": {"caps": ["CAP_SYS_ADMIN"]}}
    rules = [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_ERRNO", **only_for_some},
    ]
    (tmp_path / "mine.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    words = ["--security-opt", f"seccomp={tmp_path}/mine.json", "mkdir /new 2>&1; rmdir /tmp 2>&1 || echo kept"]
    assert "No space" in sh(shop, *words)
    assert "kept" not in sh(shop, *words)
    assert "kept" in sh(shop, "--cap-add", "SYS_ADMIN", *words)
    assert "cannot be read" in refused(shop, "run", "--security-opt", "seccomp=/absent", shop.image, "true")


def test_privileged_sees_the_devices_of_the_host(shop):
    nodes = {name for name in os.listdir("/dev") if name.startswith(("loop-control", "kmsg", "fuse"))}
    told = sh(shop, "--privileged", "ls /dev; touch /proc/sys/kernel/hostname && echo writable").split()
    assert nodes <= {*told}
    assert "writable" in told
    assert "kmsg" not in sh(shop, "ls /dev").split()


def test_devices(shop):
    assert sh(shop, "--device", "/dev/null:/dev/nothing:rw", "ls -l /dev/nothing").startswith("crw")
    assert "No such file" in refused(shop, "run", "--device", "/dev/absent", shop.image, "true")
    assert "--device" in refused(shop, "run", "--device", "/etc/passwd", shop.image, "true")


def test_limits(shop):
    script = (
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us 2>/dev/null"
        " || cat memory.max pids.max cpu.max; ulimit -n; ulimit -c"
    )
    told = sh(
        shop,
        "-m",
        "32m",
        "--pids-limit",
        "7",
        "--cpus",
        "0.5",
        "--ulimit",
        "nofile=30:40",
        "--ulimit",
        "core=0",
        script,
    ).split()
    assert (told[0], told[1], told[2], told[-2], told[-1]) == (str(32 << 20), "7", "50000", "30", "0")
    assert "6 MiB" in refused(shop, "run", "-m", "1m", shop.image, "true")
    assert "--memory-swap" in refused(shop, "run", "-m", "32m", "--memory-swap", "16m", shop.image, "true")
    assert "--cpus" in refused(shop, "run", "--cpus", "-1", shop.image, "true")
    assert "--ulimit" in refused(shop, "run", "--ulimit", "files=3", shop.image, "true")


def test_tmpfs_and_shared_memory(shop):
    told = sh(shop, "--tmpfs", "/t:size=1m,mode=700", "--shm-size", "2m", "--read-only",
              "grep -E ' (/t|/dev/shm) ' /proc/mounts; ls -ld /t | cut -c1-10; touch /x || echo read-only")  # fmt: skip
    assert "size=1024k" in told
    assert "size=2048k" in told
    assert told.split()[-2:] == ["drwx------", "read-only"]


def test_id_file_and_labels(shop, tmp_path):
    path = tmp_path / "cid"
    words = ["run", "-d", "--cidfile", str(path), "--label", "tier=web", "-l", "bare", "--name", "web"]
    id_ = shop.ok(*words, shop.image, "sleep", "1000").strip()
    assert path.read_text() == id_
    assert shop.ok("inspect", "-f", '{{index .Config.Labels "tier"}}', id_[:6]) == "web\n"
    assert "exists already" in shop("run", "--cidfile", str(path), shop.image, "true").stderr.decode()


def test_an_id_file_that_cannot_be_written_makes_no_container(shop, tmp_path):
    assert "No such file" in refused(shop, "run", "--cidfile", str(tmp_path / "no/cid"), shop.image, "true")
    assert "no user" in refused(shop, "run", "--cidfile", str(tmp_path / "cid"), "-u", "ghost", shop.image, "true")
    assert not (tmp_path / "cid").exists()


def test_wrong_values_are_refused_before_anything_is_made(shop):
    for words, part in {
        ("--hostname", "a b"): "--hostname", ("--tmpfs", "relative"): "absolute", ("-w", "relative"): "not absolute",
        ("--mount", "type=bind,dst=/x"): "source", ("--mount", "type=nfs,dst=/x"): "type=", ("-v", "a/b:/x"): "volume",
        ("-v", "x:/x:odd"): "no option", ("-v", "/x/../y"): "no place", ("--stop-signal", "FOO"): "no signal",
        ("--restart", "sometimes"): "--restart", ("--shm-size", "1x"): "size", ("--detach-keys", "ctrl-1"): "detach",
        ("--platform", "a b"): "no platform", ("--pids-limit", "few"): "number", ("-u", "99999999999"): "no user",
    }.items():  # fmt: skip
        assert part in refused(shop, "run", *words, shop.image, "true"), words


def test_pull_policies(shop):
    done = shop("run", "--rm", "--pull", "never", "--platform", "linux/arm64", shop.image, "true")
    assert b"not linux/arm64" in done.stderr
    assert shop("run", "--rm", "--pull", "never", "127.0.0.1:1/not/here", "true").returncode == 125
    assert (
        shop.ok("run", "--rm", "--pull", "always", "-q", "--platform", "linux/amd64", shop.image, "echo", "x") == "x\n"
    )


def test_networks_are_refused_with_the_reason(shop):
    assert "networks come next" in refused(shop, "run", "--network", "bridge", shop.image, "true")
    assert len(sh(shop, "--network", "host", "ip -o link").splitlines()) == len(os.listdir("/sys/class/net"))


def test_names_ids_and_prefixes(shop):
    first = shop.ok("create", "--name", "first", shop.image, "true").strip()
    assert shop.ok("inspect", "-f", "{{.Name}}", "/first") == "/first\n"
    assert shop.ok("inspect", "-f", "{{.Id}}", first[:8]).strip() == first
    assert "in use" in shop("create", "--name", "first", shop.image, "true").stderr.decode()
    for bad in ("x", "-x", "a/b", "a b"):
        assert shop("create", f"--name={bad}", shop.image, "true").returncode == 125


def test_init_forwards_and_reaps(shop):
    script = "trap 'echo got; exit 4' TERM; (sleep 0.1 &); echo up; while :; do sleep 0.1; done"
    id_ = shop.ok("run", "-d", "--init", shop.image, "sh", "-c", script).strip()
    deadline = time.monotonic() + 20
    while shop.ok("logs", id_) != "up\n":
        assert time.monotonic() < deadline
    assert shop.ok("exec", id_, "cat", "/proc/1/comm").strip() == "cowshed-init"
    assert shop.ok("exec", id_, "cat", "/proc/1/cmdline").strip("\0") == "cowshed-init"
    time.sleep(0.3)
    assert "Z" not in [
        line.split(") ")[1][0] for line in shop.ok("exec", id_, "sh", "-c", "cat /proc/[0-9]*/stat").splitlines()
    ]
    shop.ok("stop", id_)
    assert shop.ok("wait", id_).strip() == "4"
    assert shop("run", "--rm", "--init", shop.image, "sh", "-c", "kill -9 $$").returncode == 137


def test_stop_signal_and_timeout(shop):
    script = "trap 'exit 9' USR1; trap '' TERM; while :; do sleep 0.05; done"
    id_ = shop.ok("run", "-d", "--stop-signal", "USR1", shop.image, "sh", "-c", script).strip()
    time.sleep(0.3)
    shop.ok("stop", id_)
    assert shop.ok("wait", id_).strip() == "9"
    id_ = shop.ok("run", "-d", "--stop-timeout", "0", shop.image, "sh", "-c", script).strip()
    shop.ok("stop", id_)
    assert shop.ok("wait", id_).strip() == "137"
    id_ = shop.ok("run", "-d", shop.image, "sh", "-c", script).strip()
    time.sleep(0.3)
    shop.ok("stop", "-s", "SIGUSR1", "--time", "5", id_)
    assert shop.ok("wait", id_).strip() == "9"


def test_kill_takes_names_and_numbers(shop):
    for signal, status in (("SIGKILL", "137"), ("9", "137"), ("kill", "137")):
        id_ = shop.ok("run", "-d", shop.image, "sleep", "1000").strip()
        shop.ok("kill", "-s", signal, id_)
        assert shop.ok("wait", id_).strip() == status
    done = shop("kill", id_)
    assert (done.returncode, b"not running" in done.stderr) == (1, True)
    assert shop("kill", "-s", "NOPE", id_).returncode == 125


def test_start_attached_gives_output_and_status(shop):
    shop.ok("create", "--name", "again", "-i", shop.image, "sh", "-c", "read line; echo $line; exit 3")
    done = shop("start", "-ai", "again", feed=b"words\n")
    assert (done.returncode, done.stdout) == (3, b"words\n")
    done = shop("start", "-a", "again")
    assert done.returncode == 3


def test_exec_options(shop):
    id_ = shop.ok("run", "-d", "-e", "A=1", shop.image, "sleep", "1000").strip()
    words = ["exec", "-u", "www", "-w", "/tmp", "-e", "B=2", id_, "sh", "-c", "id -u; pwd; echo $A$B $HOME"]
    assert shop.ok(*words).split() == ["33", "/tmp", "12", "/home"]
    assert shop.ok("exec", "-u", "www", "-e", "HOME=/x", id_, "sh", "-c", "echo $HOME") == "/x\n"
    assert "no user" in shop("exec", "-u", "ghost", id_, "true").stderr.decode()
    assert shop.ok("exec", "-i", id_, "cat", feed=b"in") == "in"
    assert shop.ok("exec", "-d", id_, "sh", "-c", "echo done > /tmp/done") == ""
    deadline = time.monotonic() + 20
    while shop("exec", id_, "cat", "/tmp/done").stdout != b"done\n":
        assert time.monotonic() < deadline
    assert shop("exec", id_, "sh", "-c", "kill -TERM $$").returncode == 143
    assert shop("exec", id_, "/etc/passwd").returncode == 126
    assert shop("exec", "absent", "true").returncode == 125
    shop.ok("stop", "-t", "0", id_)
    for words in (["exec", id_, "true"], ["exec", "-u", "www", id_, "true"]):
        assert "not running" in shop(*words).stderr.decode()


def test_restart_policies(shop):
    id_ = shop.ok("run", "-d", "--restart", "on-failure:2", shop.image, "sh", "-c", "echo run; exit 1").strip()
    deadline = time.monotonic() + 30
    while shop.ok("inspect", "-f", "{{.RestartCount}} {{.State.Running}}", id_).split() != ["2", "false"]:
        assert time.monotonic() < deadline
    assert shop.ok("logs", id_) == "run\n" * 3
    id_ = shop.ok("run", "-d", "--restart", "always", shop.image, "sleep", "1000").strip()
    pid = shop.ok("inspect", "-f", "{{.State.Pid}}", id_)
    os.kill(int(pid), 9)
    while shop.ok("inspect", "-f", "{{.State.Pid}} {{.State.Running}}", id_).split() in (
        [pid.strip(), "true"],
        ["0", "false"],
    ):
        assert time.monotonic() < deadline
    shop.ok("stop", "-t", "0", id_)
    time.sleep(0.5)
    assert shop.ok("inspect", "-f", "{{.State.Running}}", id_) == "false\n"
    assert "exclude" in shop("run", "--rm", "--restart", "always", shop.image, "true").stderr.decode()


def test_restart_keeps_a_container_that_is_removed_at_its_end(shop):
    shop.ok("run", "-d", "--rm", "--name", "fleeting", shop.image, "sleep", "1000")
    pid = shop.ok("inspect", "-f", "{{.State.Pid}}", "fleeting")
    shop.ok("restart", "-t", "0", "fleeting")
    assert shop.ok("inspect", "-f", "{{.State.Pid}}", "fleeting") not in (pid, "0\n")
    shop.ok("stop", "-t", "0", "fleeting")
    deadline = time.monotonic() + 20
    while shop.names():
        assert time.monotonic() < deadline


def test_listing_filters(shop):
    shop("run", "--name", "failed", "--label", "k=v", shop.image, "sh", "-c", "exit 3")
    shop.ok("create", "--name", "made", "-v", "vol:/vol", shop.image, "true")
    shop.ok("run", "-d", "--name", "going", shop.image, "sleep", "1000")

    def names(*words):
        return shop.ok("ps", "--format", "{{.Names}}", *words).split()

    assert names() == ["going"]
    assert names("-a") == ["going", "made", "failed"]
    assert names("-n", "2") == ["going", "made"]
    assert names("--latest") == ["going"]
    assert names("-f", "exited=3") == ["failed"]
    assert names("-f", "status=created", "-f", "status=exited") == ["made", "failed"]
    assert names("-a", "-f", "label=k=v") == ["failed"]
    assert names("-a", "-f", "volume=vol") == ["made"]
    assert names("-a", "-f", "before=made") == ["failed"]
    assert names("-a", "-f", "since=made") == ["going"]
    assert names("-a", "-f", "ancestor=" + shop.image, "-f", "name=^ma") == ["made"]
    assert names("-a", "-f", "id=" + shop.ok("ps", "-q").strip()) == ["going"]
    assert json.loads(shop.ok("ps", "-l", "--format", "json"))["Command"] == '"sleep 1000"'
    assert shop.ok("ps", "-s").splitlines()[0].split()[-1] == "SIZE"
    assert shop("ps", "-f", "color=red").returncode == 125
    assert shop("ps", "-f", "status=tired").returncode == 125
    shop.ok("container", "prune", "-f", "--filter", "label=k")
    assert names("-a") == ["going", "made"]
    shop.ok("rm", "made")
    shop.ok("volume", "rm", "vol")


def test_what_inspect_tells_scripts(shop, tmp_path):
    id_ = shop.ok("run", "-d", "-v", f"{tmp_path}:/in:ro", "-v", "vol:/out", "--restart", "on-failure:4", "-m", "64m",
                  shop.image, "sleep", "1000").strip()  # fmt: skip
    (told,) = json.loads(shop.ok("inspect", id_))
    assert (told["Path"], told["Args"]) == ("sleep", ["1000"])
    assert told["State"]["Status"] == "running"
    assert os.path.exists(f"/proc/{told['State']['Pid']}")
    assert [(m["Type"], m["Destination"], m["RW"]) for m in told["Mounts"]] == [
        ("bind", "/in", False), ("volume", "/out", True),
    ]  # fmt: skip
    assert told["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 4}
    assert told["HostConfig"]["Memory"] == 64 << 20
    assert told["GraphDriver"]["Name"] == "overlay"
    assert told["Config"]["WorkingDir"] == "/srv"
    assert "GREETING=hello" in told["Config"]["Env"]
    assert shop("inspect", "--type", "image", id_).returncode == 125
    assert shop.ok("inspect", "--type", "volume", "-f", "{{.Name}}", "vol") == "vol\n"
    done = shop("inspect", "-f", "{{.Id}}", "absent", id_)
    assert (done.returncode, done.stdout.decode().strip()) == (1, id_)
    shop.ok("rm", "-f", id_)
    shop.ok("volume", "rm", "vol")


def test_logs_options(shop):
    id_ = shop.ok("run", "-d", shop.image, "sh", "-c", "echo one; sleep 1.2; echo two; sleep 1000").strip()
    deadline = time.monotonic() + 20
    while shop.ok("logs", id_) != "one\ntwo\n":
        assert time.monotonic() < deadline
    assert shop.ok("logs", "--tail", "1", id_) == "two\n"
    assert shop.ok("logs", "-n", "0", id_) == ""
    first, second = (line.split()[0] for line in shop.ok("logs", "-t", id_).splitlines())
    assert first < second
    assert shop.ok("logs", "--since", second, id_) == "two\n"
    assert shop.ok("logs", "--until", first, id_) == "one\n"
    assert shop("logs", "--tail", "few", id_).returncode == 125
