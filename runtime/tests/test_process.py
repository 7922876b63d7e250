"""The process object: scheduling, limits, capabilities, identity, seen from inside a container."""

import os
import resource

import pytest

from cowshed_linux import capabilities, libc, scheduling
from cowshed_runtime import launcher, settings
from cowshed_runtime.cgroup import layout

RESOURCE = 1 << capabilities.NUMBERS["CAP_SYS_RESOURCE"]
MAY_RAISE = bool(capabilities.permitted() & RESOURCE)


def made(work=None, linux=None, annotations=None):
    user = {"uid": 0, "gid": 0}
    return settings.Settings({"user": user, **(work or {})}, linux or {}, annotations or {})


def field(text, name):
    """A field of /proc/PID/status."""
    return next(line.split(":")[1].split() for line in text.splitlines() if line.startswith(f"{name}:"))


def stat(text):
    """The fields of /proc/PID/stat, by their numbers in proc(5)."""
    return dict(enumerate(text.rpartition(")")[2].split(), 3))


# --- capabilities


def test_capabilities_that_are_none_are_warnings(box):
    names = ["CAP_KILL", "CAP_OF_THE_FUTURE", "nonsense"]
    box.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    started = box.start("/bin/cat", "/proc/self/status")
    assert started.warnings == [
        "capability CAP_OF_THE_FUTURE is not granted: this kernel does not know it",
        "capability nonsense is not granted: this kernel does not know it",
    ]
    text, _ = started.read()
    assert {int(field(text, name)[0], 16) for name in ("CapBnd", "CapEff", "CapPrm")} == {1 << 5}


def test_capabilities_that_the_runtime_lacks_are_warnings(monkeypatch):
    monkeypatch.setattr(settings, "_PERMITTED", 1 << 5 | 1 << 0)
    names = ["CAP_KILL", "CAP_SYS_TIME"]
    wanted = {"capabilities": dict.fromkeys(settings.SETS, names)}
    got = made(wanted)
    assert got.warnings == ["capability CAP_SYS_TIME is not granted: this runtime does not have it itself"]
    assert got.bounding == got.permitted == got.effective == got.inheritable == got.ambient == 1 << 5
    # In a user namespace of its own a process has all of them.
    inside = made(wanted, {"namespaces": [{"type": "user"}]})
    assert inside.warnings == []
    assert inside.effective == 1 << 5 | 1 << 25


@pytest.mark.parametrize(
    ("sets", "warning"),
    [
        ({"effective": ["CAP_KILL"]}, "capability CAP_KILL is not effective: it is not permitted"),
        (
            {"ambient": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
            "capability CAP_KILL is not ambient: it is not permitted and inheritable",
        ),
    ],
)
def test_sets_that_do_not_go_together_are_warnings(box, sets, warning):
    box.process["capabilities"] = sets
    started = box.start("/bin/cat", "/proc/self/status")
    assert started.warnings == [warning]
    text, _ = started.read()
    assert int(field(text, "CapEff")[0], 16) == int(field(text, "CapAmb")[0], 16) == 0


def test_each_of_the_five_sets_is_its_own(box):
    box.process["capabilities"] = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_RAW"],
        "permitted": ["CAP_KILL", "CAP_SETUID"],
        "effective": ["CAP_KILL"],
        "inheritable": ["CAP_SETUID", "CAP_CHOWN"],
        "ambient": ["CAP_SETUID"],
    }
    box.process["user"] = {"uid": 9, "gid": 9}
    started = box.start("/bin/cat", "/proc/self/status")
    text, _ = started.read()
    seen = {name: int(field(text, f"Cap{name}")[0], 16) for name in ("Bnd", "Prm", "Eff", "Inh", "Amb")}
    # By execve(2) of a user who is not root only what is ambient stays permitted and effective.
    assert seen == {
        "Bnd": 1 << 0 | 1 << 5 | 1 << 7 | 1 << 13, "Prm": 1 << 7, "Eff": 1 << 7, "Inh": 1 << 7 | 1 << 0, "Amb": 1 << 7,
    }  # fmt: skip
    assert started.warnings == []


# --- limits


def test_a_limit_that_is_given_twice_is_refused(box):
    limit = {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 10}
    box.process["rlimits"] = [limit, {**limit, "soft": 5}]
    error = box.refused()
    assert error.stage == "spec"
    assert "RLIMIT_NOFILE is given twice" in str(error)


def test_every_limit_has_a_name_and_the_kernels_number():
    for name, number in settings.LIMITS.items():
        assert getattr(resource, name, number) == number
    assert len(settings.LIMITS) == 16


@pytest.mark.parametrize("inside", [False, True], ids=["host", "user namespace"])
def test_limits_above_the_hosts_are_set_as_high_as_they_go(box, inside):
    if inside:  # raising takes a privilege outside, which the container's root does not have
        box.in_user_namespace()
    _, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    box.process["rlimits"] = [{"type": "RLIMIT_MSGQUEUE", "soft": hard + 1, "hard": hard + 2}]
    started = box.start("/bin/grep", "Max msgqueue", "/proc/self/limits")
    got = [int(word) for word in started.read()[0].split()[3:5]]
    if MAY_RAISE:
        assert got == [hard + 1, hard + 2]
        assert started.warnings == []
    else:
        assert got == [hard, hard]
        assert "RLIMIT_MSGQUEUE" in started.warnings[0]
        assert "CAP_SYS_RESOURCE" in started.warnings[0]
    limit = ["/bin/grep", "Max msgqueue", "/proc/self/limits"]
    box.group.remove()
    first = box.start("/bin/sleep", "1000")
    assert [int(word) for word in box.exec(first, *limit).out.split()[3:5]] == got


def test_more_files_than_a_process_may_have(box):
    with open("/proc/sys/fs/nr_open") as file:
        most = int(file.read())
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": most + 1, "hard": most + 1}]
    done = box.run("/bin/grep", "Max open", "/proc/self/limits")
    assert int(done.out.split()[3]) <= most


@pytest.mark.parametrize("value", [500, 1000])
def test_badness_for_the_oom_killer(box, value):
    box.process["oomScoreAdj"] = value
    started = box.start("/bin/cat", "/proc/self/oom_score_adj")
    assert started.read()[0] == f"{value}\n"
    assert started.warnings == []


def test_badness_that_cannot_be_lowered_is_a_warning(box):
    box.process["oomScoreAdj"] = -500
    started = box.start("/bin/cat", "/proc/self/oom_score_adj")
    got = started.read()[0]
    if MAY_RAISE:
        assert got == "-500\n"
        assert started.warnings == []
    else:
        with open("/proc/self/oom_score_adj") as file:
            assert got == file.read()
        (warning,) = started.warnings
        assert "oomScoreAdj is not lowered to -500" in warning


def test_badness_is_left_alone_if_nothing_is_said(box):
    with open("/proc/self/oom_score_adj") as file:
        before = file.read()
    assert box.run("/bin/cat", "/proc/self/oom_score_adj").out == before


# --- scheduling


def test_batch_with_a_nice_value(box):
    box.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    fields = stat(box.run("/bin/cat", "/proc/self/stat").out)
    assert (fields[19], fields[41]) == ("7", str(os.SCHED_BATCH))


def test_a_scheduler_that_children_do_not_inherit(box):
    box.process["scheduler"] = {"policy": "SCHED_OTHER", "nice": -7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    done = box.sh("cat /proc/self/stat; cat /proc/1/stat")
    child, first = (stat(line) for line in done.out.splitlines())
    assert (first[19], child[19]) == ("-7", "0")


def test_idle(box):
    box.process["scheduler"] = {"policy": "SCHED_IDLE"}
    assert stat(box.run("/bin/cat", "/proc/self/stat").out)[41] == str(os.SCHED_IDLE)


@pytest.mark.parametrize("policy", ["SCHED_FIFO", "SCHED_RR"])
def test_real_time_needs_a_share_of_its_group(box, policy):
    box.process["scheduler"] = {"policy": policy, "priority": 7}
    if os.path.exists(f"{layout.host.find('cpu')}/cpu.rt_runtime_us"):  # version 1, CONFIG_RT_GROUP_SCHED
        error = box.refused("/bin/true")
        assert (error.stage, error.errno) == ("scheduler", 1)
        assert "realtimeRuntime" in str(error)
    else:
        fields = stat(box.run("/bin/cat", "/proc/self/stat").out)
        assert (fields[40], fields[41]) == ("7", str(scheduling.POLICIES[policy]))


def test_deadline(box):
    box.process["scheduler"] = {
        "policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 20_000_000, "period": 30_000_000,
        "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"],
    }  # fmt: skip
    done = box.run("/bin/cat", "/proc/self/stat", "/proc/self/sched")
    assert stat(done.out.splitlines()[0])[41] == "6"


def test_a_policy_that_the_kernel_does_not_have(box):
    box.process["scheduler"] = {"policy": "SCHED_ISO"}
    error = box.refused()
    assert (error.stage, error.errno) == ("scheduler", 22)


@pytest.mark.parametrize(
    ("wanted", "where", "wrong"),
    [
        ({}, "policy", "is missing"),
        ({"policy": "SCHED_FAIR"}, "policy", "one of"),
        ({"policy": "SCHED_OTHER", "nice": 20}, "nice", "between"),
        ({"policy": "SCHED_OTHER", "priority": 1}, "priority", "not of SCHED_OTHER"),
        ({"policy": "SCHED_FIFO"}, "priority", "between 1 and 99"),
        ({"policy": "SCHED_BATCH", "deadline": 5}, "deadline", "is of SCHED_DEADLINE"),
        ({"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_MAGIC"]}, "flags[0]", "one of"),
    ],
)
def test_rules_of_the_scheduler(box, wanted, where, wrong):
    box.process["scheduler"] = wanted
    error = box.refused()
    assert error.stage == "spec"
    assert f"process.scheduler.{where}: " in str(error)
    assert wrong in str(error)


@pytest.mark.parametrize(
    ("kind", "level", "told"),
    [("IOPRIO_CLASS_IDLE", 4, "idle"), ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"),
     ("IOPRIO_CLASS_RT", 1, "realtime: prio 1")],
)  # fmt: skip
def test_priority_at_disks(box, kind, level, told):
    (box.rootfs / "bin/ionice").symlink_to("busybox")
    box.process["ioPriority"] = {"class": kind, "priority": level}
    assert box.sh("ionice -p $$").out.strip() == told


def test_rules_of_the_priority_at_disks(box):
    for wanted in (
        {"class": "IOPRIO_CLASS_BE"},
        {"class": "X", "priority": 1},
        {"class": "IOPRIO_CLASS_BE", "priority": 8},
    ):
        box.process["ioPriority"] = wanted
        assert "process.ioPriority." in str(box.refused())


def test_affinity_is_for_processes_that_join(box):
    mine = sorted(os.sched_getaffinity(0))
    first = box.start("/bin/sleep", "60")
    given = {"initial": str(mine[-1]), "final": str(mine[0])}
    for wanted, seen in ((given, given["final"]), ({"initial": given["initial"]}, given["initial"]), ({}, None)):
        done = box.exec(first, "/bin/grep", "Cpus_allowed_list", "/proc/self/status", execCPUAffinity=wanted)
        if seen is None:
            assert len(settings.numbers(done.out.split()[1])) == len(mine)
        else:
            assert done.out.split()[1] == seen, wanted
    with pytest.raises(Exception, match=r"execCPUAffinity\.final cannot be set"):
        box.exec(first, "/bin/true", execCPUAffinity={"final": "9999"})
    with pytest.raises(Exception, match="no range"):
        box.exec(first, "/bin/true", execCPUAffinity={"initial": "3-1"})
    os.kill(first.pid, 9)
    first.read()
    box.group.remove()
    box.process["execCPUAffinity"] = given
    done = box.run("/bin/grep", "Cpus_allowed_list", "/proc/self/status")
    assert len(settings.numbers(done.out.split()[1])) == len(mine), "the first process is not meant"


@pytest.mark.parametrize(
    ("text", "found"),
    [("", []), ("3", [3]), ("0-2,7", [0, 1, 2, 7]), (" 1 , 1-2 ", [1, 2])],
)
def test_lists_of_numbers(text, found):
    assert settings.numbers(text) == found


@pytest.mark.parametrize("text", [",", "a", "-1", "2-1", "1-", "1,,2", "0x1", "²", "1000000", "0-1000000"])
def test_what_is_no_list_of_numbers(text):
    with pytest.raises(ValueError, match="is no"):
        settings.numbers(text)


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0"}, "interleave:0"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, "bind=static:0"),
        ({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}, "prefer=relative:0"),
        ({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"}, "prefer (many):0"),
        ({"mode": "MPOL_LOCAL"}, "local"),
        ({"mode": "MPOL_DEFAULT"}, "default"),
    ],
)
def test_memory_policy(box, wanted, seen):
    if not os.path.exists("/proc/self/numa_maps"):
        pytest.skip("this kernel knows no memory nodes")
    box.linux["memoryPolicy"] = wanted
    text = box.run("/bin/head", "-n", "1", "/proc/self/numa_maps").out
    assert text.split(" ", 1)[1].startswith(seen), text


def test_memory_nodes_that_are_not_there(box):
    box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "4000"}
    error = box.refused()
    assert (error.stage, error.errno) == ("memoryPolicy", 22)


@pytest.mark.parametrize(
    ("wanted", "wrong"),
    [
        ({}, "mode: is missing"),
        ({"mode": "MPOL_MAGIC"}, "mode: must be one of"),
        ({"mode": "MPOL_LOCAL", "nodes": "0"}, "there are none"),
        ({"mode": "MPOL_BIND"}, "needs some"),
        ({"mode": "MPOL_BIND", "nodes": "x"}, "such as 0-3,7"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}, "exclude"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["X"]}, "must be one of"),
    ],
)
def test_rules_of_the_memory_policy(box, wanted, wrong):
    box.linux["memoryPolicy"] = wanted
    error = box.refused()
    assert error.stage == "spec"
    assert wrong in str(error)


def test_personality(box):
    (box.rootfs / "bin/uname").symlink_to("busybox")
    box.linux["personality"] = {"domain": "LINUX"}
    assert box.run("/bin/uname", "-m").out.strip() == os.uname().machine
    if os.uname().machine == "x86_64":
        box.linux["personality"] = {"domain": "LINUX32"}
        assert box.run("/bin/uname", "-m").out.strip() == "i686"
    for wanted in ({"domain": "BSD"}, {}, {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}):
        box.linux["personality"] = wanted
        assert "linux.personality" in str(box.refused())


# --- identity


def test_umask_is_the_usual_one_if_nothing_is_said(box):
    before = os.umask(0)
    try:
        assert box.sh("umask").out == "0022\n"
    finally:
        os.umask(before)


def test_groups_are_reset_or_by_an_annotation_kept(box):
    def launch(stdio):
        os.setgroups([41, 42])
        return launcher.launch(box.config, -1, stdio, group=box.group, cache=str(box.cache))

    box.config["root"]["path"] = str(box.rootfs)
    box.process["args"] = ["/bin/grep", "Groups", "/proc/self/status"]
    assert box._fork(launch).read()[0].split() == ["Groups:"]
    box.group.remove()
    box.config["annotations"] = {settings.KEEP_GROUPS: "1"}
    assert box._fork(launch).read()[0].split() == ["Groups:", "41", "42"]


@pytest.mark.parametrize("own", [True, False])
def test_a_session_keyring_of_its_own_unless_the_launchers_is_wanted(box, own):
    box.linux["maskedPaths"] = []
    box.config["root"]["path"] = str(box.rootfs)
    box.process["args"] = ["/bin/cat", "/proc/keys"]

    def launch(stdio):
        key = libc.syscall("keyctl", libc.KEYCTL, 1, libc.string("cowshed-test"), 0, 0, 0)
        libc.syscall("keyctl", libc.KEYCTL, 5, key, 0x3F000000, 0, 0)  # only its possessor sees it
        manner = launcher.Manner(keyring=own)
        return launcher.launch(box.config, -1, stdio, group=box.group, cache=str(box.cache), manner=manner)

    text = box._fork(launch).read()[0]
    assert "keyring" in text
    assert ("cowshed-test" in text) is not own


def test_home_is_that_of_the_containers_users(box):
    (box.rootfs / "etc/passwd").write_text("root:x:0:0:r:/root:/bin/sh\nbroken\nu:x:12:12::/home/u:/bin/sh\n")
    for uid, home in ((0, "/root"), (12, "/home/u"), (13, "/")):
        box.process["user"] = {"uid": uid, "gid": uid}
        assert box.sh("echo $HOME").out.strip() == home
    box.process["env"].append("HOME=/given")
    assert box.sh("echo $HOME").out.strip() == "/given"


def test_users_of_the_image_that_lead_elsewhere_are_not_read(box):
    os.mkfifo(box.rootfs / "etc/fifo")
    for target in ("/proc/self/fd/0", "fifo", "/dev/zero"):
        (box.rootfs / "etc/passwd").unlink(missing_ok=True)
        (box.rootfs / "etc/passwd").symlink_to(target)
        assert box.sh("echo $HOME").out.strip() == "/"


def test_size_of_a_console_that_is_none_is_ignored(box):
    box.process["consoleSize"] = {"height": 10, "width": 20}
    assert box.run("/bin/echo", "there").out == "there\n"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"user": {"uid": -1, "gid": 0}}, "user.uid"),
        ({"user": {"uid": 2**32 - 1, "gid": 0}}, "user.uid"),
        ({"user": {"uid": 0}}, "user.gid"),
        ({"user": {"uid": 0, "gid": 0, "umask": 0o1000}}, "user.umask"),
        ({"user": {"uid": 0, "gid": 0, "additionalGids": [2**32]}}, "user.additionalGids[0]"),
        ({"args": []}, "args"),
        ({"args": ["a\0b"]}, "args[0]"),
        ({"env": ["=x"]}, "env[0]"),
        ({"cwd": "relative"}, "cwd"),
        ({"oomScoreAdj": 1001}, "oomScoreAdj"),
        ({"consoleSize": {"height": 1}}, "consoleSize.width"),
        ({"rlimits": [{"type": "RLIMIT_WISH", "soft": 1, "hard": 1}]}, "rlimits[0].type"),
        ({"rlimits": [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]}, "rlimits[0]"),
        ({"rlimits": [{"type": "RLIMIT_CORE", "soft": -1, "hard": 1}]}, "rlimits[0].soft"),
        ({"capabilities": {"bounding": [7]}}, "capabilities.bounding[0]"),
        ({"capabilities": ["CAP_KILL"]}, "capabilities"),
        ({"selinuxLabel": 7}, "selinuxLabel"),
        ({"terminal": "yes"}, "terminal"),
    ],
)
def test_rules_of_the_process(box, change, where):
    box.process.update({"args": ["/bin/true"], **change})
    with pytest.raises(Exception, match=r"config\.json") as caught:
        box.start()
    assert f"process.{where}: " in str(caught.value)


@pytest.mark.parametrize("annotations", [{"": "x"}, {"key": 7}, ["key"]])
def test_rules_of_annotations(box, annotations):
    box.config["annotations"] = annotations
    assert "annotations: " in str(box.refused())


def test_a_label_of_a_system_that_does_not_run_is_refused(box):
    from cowshed_runtime import labels

    if labels.selinux():
        pytest.skip("SELinux runs here")
    box.process["selinuxLabel"] = "system_u:system_r:container_t:s0"
    error = box.refused()
    assert error.stage == "selinux"
    assert "this kernel runs no SELinux" in str(error)
