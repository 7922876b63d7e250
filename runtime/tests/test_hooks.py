"""Hooks: when each runs, where, what it is told and given, and what follows when one fails (runtime.md, Lifecycle)."""

import json
import os

import pytest

from cowshed_runtime import hooks

ORDER = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
TELL = """#!/bin/sh
{ echo "$1"; cat; echo; pwd; readlink /proc/self/ns/mnt; readlink /proc/self/ns/net
  test -e /bin/busybox-of-box; echo $?; } >> OUT
"""


@pytest.fixture
def hook(box):
    """A function that writes a hook, for the host or for the container, and gives its entry."""

    def write(name, script, *, inside=False, **more):
        folder = box.rootfs / "bin" if inside else box.folder
        path = folder / f"hook-{name}"
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return {"path": f"/bin/hook-{name}" if inside else str(path), "env": ["PATH=/usr/bin:/bin"], **more}

    return write


def told(text):
    """What the hooks of TELL wrote: by kind, in the order in which they ran."""
    lines = text.splitlines()
    return {lines[at]: (json.loads(lines[at + 1]), *lines[at + 2 : at + 6]) for at in range(0, len(lines), 6)}


def test_order_namespaces_state_and_directory(box, hook):
    out = box.folder / "out"
    (box.rootfs / "bin/busybox-of-box").touch()
    box.config["annotations"] = {"some": "thing"}
    # The container's own hook cannot write to the host: to a file that is bound into it.
    out.touch()
    out.chmod(0o666)
    box.config["mounts"].append(
        {"destination": "/tmp/out", "type": "bind", "source": str(out), "options": ["bind", "rw"]}
    )
    box.config["hooks"] = {
        kind: [
            hook(
                kind, TELL.replace("OUT", "/tmp/out" if kind == "startContainer" else str(out)),
                inside=kind == "startContainer", args=["it", kind],
            )
        ]
        for kind in ORDER
    }  # fmt: skip
    started = box.start("/bin/sh", "-c", "echo program >> /tmp/out; readlink /proc/self/ns/net; sleep 60")
    net = started.line()
    text = out.read_text().replace("program\n", "")
    assert out.read_text().index("startContainer") < out.read_text().index("program")
    seen = told(text)
    assert tuple(seen) == ORDER[:5]
    status = {kind: state["status"] for kind, (state, *_) in seen.items()}
    assert status == {
        "prestart": "creating", "createRuntime": "creating", "createContainer": "creating",
        "startContainer": "created", "poststart": "running",
    }  # fmt: skip
    for kind, (state, folder, mounts, network, own) in seen.items():
        inside = kind in ("createContainer", "startContainer")
        assert (mounts == os.readlink("/proc/self/ns/mnt")) is not inside, kind
        assert (network == net) is inside, kind
        assert state["pid"] == (1 if inside else started.pid), kind
        assert folder == ("/" if kind == "startContainer" else str(box.folder)), kind
        assert (own == "0") is (kind == "startContainer"), kind
        assert state["id"] == box.group.name
        assert state["bundle"] == str(box.folder)
        assert state["annotations"] == {"some": "thing"}
        assert state["ociVersion"] == box.config["ociVersion"]
    os.kill(started.pid, 9)
    started.read()
    out.write_text("")
    assert hooks.stopped(box.config, box.group.name, str(box.folder)) == []
    ((kind, (state, *_)),) = told(out.read_text()).items()
    assert (kind, state["status"]) == ("poststop", "stopped")
    assert "pid" not in state


def test_hooks_of_the_host_come_after_the_mounts(box, hook):
    """createRuntime may look at what is mounted (config.md, CreateRuntime Hooks), by the process's root."""
    out = box.folder / "out"
    box.config["hooks"] = {
        "createRuntime": [
            hook("look", f"pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); cat /proc/$pid/mountinfo > {out}")
        ]
    }
    box.run("/bin/true")
    assert any(line.split()[4].endswith("/dev/pts") and " - devpts " in line for line in out.read_text().splitlines())


def test_entries_run_in_the_order_of_the_list(box, hook):
    out = box.folder / "out"
    box.config["hooks"] = {"prestart": [hook(str(n), f"echo {n} >> {out}") for n in range(4)]}
    box.run("/bin/true")
    assert out.read_text().split() == ["0", "1", "2", "3"]


def test_environment_is_the_hooks_own_and_nothing_else(box, hook):
    out = box.folder / "out"
    box.process["env"] = ["PATH=/bin", "LD_PRELOAD=/evil.so"]
    script = f"#!/bin/sh\ntr '\\0' '\\n' < /proc/self/environ > {out}\n"
    box.config["hooks"] = {"createContainer": [{**hook("env", script), "env": ["ONE=1=2", "PATH=/bin:/usr/bin"]}]}
    box.run("/bin/true")
    assert out.read_text().splitlines() == ["ONE=1=2", "PATH=/bin:/usr/bin"]
    box.config["hooks"] = {"createContainer": [{"path": hook("bare", script)["path"]}]}
    box.run("/bin/true")
    assert out.read_text() == ""


@pytest.mark.parametrize("kind", ORDER[:5])
def test_a_hook_that_fails_stops_the_container_and_leads_to_poststop(box, hook, kind):
    after, later = box.folder / "after", box.folder / "later"
    failing = hook("fails", "echo why it failed >&2; exit 3", inside=kind == "startContainer")
    box.config["hooks"] = {kind: [failing, hook("later", f": > {later}", inside=kind == "startContainer")]}
    box.config["hooks"]["poststop"] = [hook("broken", "exit 9"), hook("after", f"cat > {after}")]
    error = box.refused("/bin/sh", "-c", "sleep 60")
    assert (error.stage, error.status) == ("hooks", 125)
    assert str(error) == f"{kind} hook {failing['path']}: ended with status 3: why it failed"
    assert json.loads(after.read_text())["status"] == "stopped"
    assert not later.exists()
    assert len(error.warnings) == 1
    assert "poststop hook" in error.warnings[0]
    assert "status 9" in error.warnings[0]


def test_poststop_goes_on_after_one_that_fails(box, hook):
    after = box.folder / "after"
    box.config["hooks"] = {
        "poststop": [{"path": "/no/such"}, hook("killed", "kill -9 $$"), hook("after", f": > {after}")]
    }
    first, second = hooks.stopped(box.config, box.group.name, str(box.folder))
    assert "/no/such" in first
    assert "No such file" in first
    assert "signal 9" in second
    assert after.exists()


def test_a_hook_that_takes_too_long_is_killed_with_its_children(box, hook):
    out = box.folder / "out"
    box.config["hooks"] = {"createRuntime": [hook("slow", f"sleep 600 & echo $! > {out}; wait", timeout=1)]}
    assert "took longer than 1 s" in str(box.refused())
    pid = int(out.read_text())
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return
    assert state in "ZX"


def test_a_hook_that_does_not_read_and_writes_much_does_not_hang(box, hook):
    box.config["annotations"] = {"long": "x" * 300_000}
    box.config["hooks"] = {"prestart": [hook("deaf", "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero")]}
    assert box.run("/bin/echo", "there").out == "there\n"


def test_output_goes_where_annotations_say(box, hook):
    out, err = box.folder / "hooks.out", box.folder / "hooks.err"
    out.write_text("before\n")
    box.config["annotations"] = {"run.oci.hooks.stdout": str(out), "run.oci.hooks.stderr": str(err)}
    box.config["hooks"] = {
        kind: [hook(kind, f"echo {kind}; echo e-{kind} >&2", inside=kind == "startContainer")] for kind in ORDER[:5]
    }
    done = box.run("/bin/true")
    assert (done.out, done.err) == ("", "")
    assert out.read_text().split() == ["before", *ORDER[:5]]
    assert err.read_text().split() == [f"e-{kind}" for kind in ORDER[:5]]
    box.config["annotations"]["run.oci.hooks.stdout"] = "/no/such/folder/file"
    assert "/no/such/folder/file" in str(box.refused())


def test_a_state_without_annotations_is_one_too(box, hook):
    out = box.folder / "out"
    hooks.run("poststart", [hook("look", f"cat > {out}")], {"bundle": "relative", "status": "running"})
    assert json.loads(out.read_text()) == {"bundle": "relative", "status": "running"}


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_a_hook_in_the_container_has_no_more_rights_than_its_program(box, hook, no_new_privileges):
    """It is a program of the image: with the runtime's capabilities it could leave."""
    box.filtered = True
    box.process["noNewPrivileges"] = no_new_privileges
    box.process["user"] = {"uid": 7, "gid": 8}
    (box.rootfs / "tmp").chmod(0o1777)
    look = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
    box.config["hooks"] = {"startContainer": [hook("look", f"{look} > /tmp/seen", inside=True)]}
    done = box.sh(f"{look}; echo; cat /tmp/seen")
    mine, hooks_ = done.out.split("\n\n")
    assert mine == hooks_.strip()
    assert "Seccomp:\t2" in mine


@pytest.mark.parametrize("kind", ["prestart", "poststop"])
def test_rules_of_hooks(box, kind):
    for entry, wrong in (
        ({}, "path: is missing"),
        ({"path": "relative"}, "absolute"),
        ({"path": "/x", "timeout": 0}, "between 1"),
        ({"path": "/x", "timeout": -1}, "between 1"),
        ({"path": "/x", "args": [1]}, "string"),
        ({"path": "/x", "env": ["nothing"]}, "NAME=VALUE"),
    ):
        box.config["hooks"] = {kind: [entry]}
        error = box.refused()
        assert error.stage == "spec"
        assert wrong in str(error), entry
