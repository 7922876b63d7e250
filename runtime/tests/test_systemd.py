"""The manager systemd: names, properties and messages (pure), a stand-in for systemd that says what it was asked, and a
real systemd where one runs."""

import os
import socket
import subprocess
import threading
import uuid

import pytest

from cowshed_runtime.cgroup import dbus, layout, place, systemd
from cowshed_runtime.cgroup.files import read
from cowshed_runtime.errors import LaunchError, SpecError

# ------------------------------------------------------------ D-Bus

VALUES = [
    ("s", "two words é"),
    ("ybnqiuxtd", [1, True, -2, 3, -4, 5, -6, 2**64 - 1, 0.5]),
    ("as", [["a", "", "ccc"]]),
    ("a(sv)", [[("Delegate", ("b", True)), ("PIDs", ("au", [1, 2]))]]),
    ("a{sv}", [[("x", ("t", 1))]]),
    ("v", [("(oa(sa(sv)))", ("/a", [("u", [("n", ("ay", [1, 2, 255]))])]))]),
    ("aat", [[[], [1], [2, 3]]]),
    ("ga(tt)", ["a{sv}", []]),
]


@pytest.mark.parametrize(("signature", "values"), VALUES)
def test_values_come_back_as_they_went(signature, values):
    values = [values] if isinstance(values, str) else values
    out = bytearray()
    dbus.put(signature, values, out)
    assert dbus.Reader(bytes(out)).take(signature) == values


def test_bytes_of_a_call_are_those_of_the_specification():
    out = bytearray()
    dbus.put("ya{yv}", [7, [(1, ("s", "x"))]], out)
    assert out.hex(" ") == "07 00 00 00 0a 00 00 00 01 01 73 00 01 00 00 00 78 00"


@pytest.mark.parametrize("signature", ["z", "a", "(s", "a{", ")", "(s}"])
def test_no_signature(signature):
    with pytest.raises(ValueError, match="signature"):
        dbus.split(signature)


@pytest.mark.parametrize("data", [b"", b"\x05\0\0\0ab", b"\xff\xff\xff\xff"])
def test_messages_that_end_too_early(data):
    with pytest.raises(ValueError, match="too early"):
        dbus.Reader(data).take("s")


# ------------------------------------------------------------ names and properties


@pytest.mark.parametrize(
    ("path", "user", "wanted"),
    [
        ("", False, ("system.slice", "cowshed-box.scope")),
        ("", True, ("user.slice", "cowshed-box.scope")),
        ("machine.slice:libpod:abc", False, ("machine.slice", "libpod-abc.scope")),
        (":docker:abc", False, ("system.slice", "docker-abc.scope")),
        ("a-b.slice::abc", False, ("a-b.slice", "abc.scope")),
    ],
)
def test_units(path, user, wanted):
    assert systemd.place(path, "box", user=user) == wanted


@pytest.mark.parametrize(
    "path", ["/a/b", "a:b", "a:b:c:d", "x.slice:a:", "noslice:a:b", "a--b.slice:x:y", "-a.slice:x:y", "s.slice:a/b:c"]
)
def test_paths_that_are_no_units(path):
    with pytest.raises(SpecError, match="cgroupsPath"):
        systemd.place(path, "box", user=False)


def test_slices_are_in_slices():
    assert systemd.expand("user-1000-x.slice") == "/user.slice/user-1000.slice/user-1000-x.slice"
    assert systemd.expand("-.slice") == ""


def test_properties_of_version_2():
    resources = {
        "memory": {"limit": 10, "swap": 15, "reservation": 5},
        "cpu": {"shares": 1024, "quota": 12_345, "period": 50_000, "cpus": "0-1,3,8", "mems": "0"},
        "pids": {"limit": -1},
        "blockIO": {"weight": 1000},
    }
    assert list(systemd.properties(resources, second=True)) == [
        ("MemoryMax", ("t", 10)),
        ("MemoryLow", ("t", 5)),
        ("MemorySwapMax", ("t", 5)),
        ("CPUWeight", ("t", 100)),
        ("CPUQuotaPeriodUSec", ("t", 50_000)),
        ("CPUQuotaPerSecUSec", ("t", 250_000)),
        ("AllowedCPUs", ("ay", [11, 1])),
        ("AllowedMemoryNodes", ("ay", [1])),
        ("TasksMax", ("t", 2**64 - 1)),
        ("IOWeight", ("t", 10000)),
    ]


def test_properties_of_version_1():
    resources = {
        "memory": {"limit": -1},
        "cpu": {"shares": 3, "quota": -1},
        "blockIO": {"weight": 10},
        "pids": {"limit": 0},
    }
    assert list(systemd.properties(resources, second=False)) == [
        ("MemoryLimit", ("t", 2**64 - 1)),
        ("CPUShares", ("t", 3)),
        ("CPUQuotaPerSecUSec", ("t", 2**64 - 1)),
        ("TasksMax", ("t", 1)),
        ("BlockIOWeight", ("t", 10)),
    ]


def test_properties_of_files_of_version_2():
    """linux.resources.unified: its values are those of the files."""
    files = {
        "memory.min": "4096", "memory.high": "max", "memory.swap.max": "2M", "cpu.weight": "7", "cpu.max": "max 50000",
        "cpuset.cpus": "0,2", "io.weight": "default 30", "io.max": "8:0 rbps=1", "memory.max": "much", "memory.low": "",
        "pids.max": "9",
    }  # fmt: skip
    assert list(systemd.properties({"unified": files}, second=True)) == [
        ("MemoryMin", ("t", 4096)),
        ("MemoryHigh", ("t", 2**64 - 1)),
        ("MemorySwapMax", ("t", 2 << 20)),
        ("CPUWeight", ("t", 7)),
        ("CPUQuotaPeriodUSec", ("t", 50_000)),
        ("CPUQuotaPerSecUSec", ("t", 2**64 - 1)),
        ("AllowedCPUs", ("ay", [5])),
        ("IOWeight", ("t", 30)),
        ("TasksMax", ("t", 9)),
    ]
    assert not list(systemd.properties({"unified": files}, second=False))


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("CollectMode", "'inactive-or-failed'", ("CollectMode", ("s", "inactive-or-failed"))),
        ("TimeoutStopUSec", "uint64 123456789", ("TimeoutStopUSec", ("t", 123456789))),
        ("TimeoutStopSec", "60", ("TimeoutStopUSec", ("t", 60_000_000))),
        ("KillSignal", "int32 9", ("KillSignal", ("i", 9))),
        ("SendSIGHUP", "true", ("SendSIGHUP", ("b", True))),
        ("After", "['a.service', \"b.service\"]", ("After", ("as", ["a.service", "b.service"]))),
        ("AllowedCPUs", "[byte 0x03, 1]", ("AllowedCPUs", ("ay", [3, 1]))),
    ],
)
def test_properties_by_annotations(name, text, wanted):
    assert list(systemd.annotated({f"org.systemd.property.{name}": text, "other": "x"})) == [wanted]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ExecStartPre", "[('/bin/sh', ['sh'], false)]"),
        ("ExecStart", "'x'"),
        ("OnFailure", "['evil.service']"),
        ("Wants", "['poweroff.target']"),
        ("Slice", "'-.slice'"),
        ("", "1"),
        ("CPUWeight", "'100'"),
        ("CPUWeight", "int32 100"),
        ("CPUWeight", "-1"),
        ("CPUWeight", str(2**64)),
        ("AllowedCPUs", "[256]"),
        ("SendSIGHUP", "1"),
        ("Description", "no quotes"),
        ("Description", "'a' 'b'"),
        ("After", "'a.service'"),
    ],
)
def test_cve_2024_3154_annotations_cannot_set_any_property(name, text):
    """Annotations of an image or pod became properties of the unit, with programs that systemd runs as root."""
    with pytest.raises(SpecError, match=r"org\.systemd\.property"):
        list(systemd.annotated({f"org.systemd.property.{name}": text}))


# ------------------------------------------------------------ a stand-in


class StandIn:
    """Says D-Bus on systemd's own socket: keeps what is called, and answers as told."""

    def __init__(self, path, refuse=()):
        self.calls, self.refuse = [], dict(refuse)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.talk(connection)

    def talk(self, connection):
        stream = connection.makefile("rb")
        assert stream.read(1) == b"\0"
        for wanted, answer in ((b"AUTH EXTERNAL\r\n", b"DATA\r\n"), (b"DATA\r\n", b"OK 0\r\n"), (b"BEGIN\r\n", b"")):
            assert stream.readline() == wanted
            connection.sendall(answer)
        while head := stream.read(16):
            fields = int.from_bytes(head[12:16], "little")
            head += stream.read(fields + -fields % 8)
            message = dbus.Message(head, stream.read(int.from_bytes(head[4:8], "little")))
            self.calls.append((message.member, message.body))
            for answer in self.answers(message):
                connection.sendall(answer)
        stream.close()

    def answers(self, message):
        if message.member in self.refuse:
            yield self.message(3, [(4, ("s", self.refuse[message.member]))], message.serial, "s", ["no"])
            if self.refuse[message.member].endswith("UnitExists"):
                del self.refuse[message.member]
            return
        if message.member in ("StartTransientUnit", "StopUnit"):
            # The signal may come before the answer, and others with it.
            for job, result in (("/job/1", "failed"), ("/job/2", "done")):
                yield self.message(4, [(3, ("s", "JobRemoved"))], 0, "uoss", [2, job, message.body[0], result])
            yield self.message(2, [], message.serial, "o", ["/job/2"])
        elif message.member == "GetUnit":
            yield self.message(2, [], message.serial, "o", ["/unit"])
        elif message.member == "Get":
            yield self.message(2, [], message.serial, "v", [("s", "/user.slice/manager")])
        else:
            yield self.message(2, [], message.serial, "", [])

    @staticmethod
    def message(kind, fields, serial, signature, values):
        body, out = bytearray(), bytearray()
        dbus.put(signature, values, body)
        fields = [(1, ("o", "/x")), *fields, (5, ("u", serial)), (8, ("g", signature))]
        dbus.put("yyyyuua(yv)", [ord("l"), kind, 0, 1, len(body), 9, fields], out)
        return bytes(out + bytes(-len(out) % 8) + body)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    made = []

    def start(**refuse):
        path = f"{tmp_path}/private"
        monkeypatch.setattr(systemd, "_addresses", lambda *, user: [("/nowhere", ""), (path, "")])
        made.append(StandIn(path, refuse))
        return made[0]

    yield start
    for one in made:
        one.close()


def test_a_unit_is_started_and_stopped(stand_in):
    server = stand_in(StartTransientUnit="org.freedesktop.systemd1.UnitExists")
    with systemd.Manager(user=False) as manager:
        assert manager.start("x.scope", [("Delegate", ("b", True))]) == "/user.slice/manager"
        manager.set("x.scope", [("TasksMax", ("t", 5))])
        manager.attach("x.scope", 77)
        manager.stop("x.scope")
    assert server.calls == [
        ("StartTransientUnit", ["x.scope", "fail", [("Delegate", ("b", True))], []]),
        ("ResetFailedUnit", ["x.scope"]),
        ("StartTransientUnit", ["x.scope", "fail", [("Delegate", ("b", True))], []]),
        ("GetUnit", ["x.scope"]),
        ("Get", ["org.freedesktop.systemd1.Scope", "ControlGroup"]),
        ("SetUnitProperties", ["x.scope", True, [("TasksMax", ("t", 5))]]),
        ("AttachProcessesToUnit", ["x.scope", "", [77]]),
        ("StopUnit", ["x.scope", "replace"]),
        ("ResetFailedUnit", ["x.scope"]),
    ]


def test_what_systemd_refuses_is_told(stand_in):
    stand_in(
        StartTransientUnit="org.freedesktop.DBus.Error.InvalidArgs", StopUnit="org.freedesktop.systemd1.NoSuchUnit"
    )
    with systemd.Manager(user=False) as manager:
        with pytest.raises(OSError, match=r"systemd refuses x\.scope: no"):
            manager.start("x.scope", [])
        manager.stop("x.scope")


def test_a_systemd_that_is_not_there(monkeypatch):
    monkeypatch.setattr(systemd, "_addresses", lambda *, user: [("/nowhere", "")])
    with pytest.raises(OSError, match=r"systemd cannot be reached.*cgroupfs"):
        systemd.Manager(user=False)


def test_a_users_scope_is_where_his_systemd_is(stand_in):
    stand_in()
    group = place.locate({"linux": {"cgroupsPath": "a-b.slice:p:n"}}, "box", systemd=True, rootless=True)
    assert group.path == "/user.slice/manager/a.slice/a-b.slice/p-n.scope"
    again = place.restore(group.record())
    assert (again.path, again.unit, again.foreign, again.rootless) == (group.path, "p-n.scope", True, True)


def test_a_record_of_a_plain_group(tmp_path):
    group = place.locate({"linux": {"cgroupsPath": "/x/y"}}, "box")
    again = place.restore(group.record())
    assert (again.name, again.path, again.own, list(again.directories())) == (
        "box",
        "/x/y",
        False,
        [*group.directories()],
    )


# ------------------------------------------------------------ a real one

real = pytest.mark.skipif(not os.path.exists("/run/systemd/private"), reason="needs a running systemd")


@pytest.fixture
def scope(box):
    box.linux["cgroupsPath"] = f"cowshedtest.slice:test:{uuid.uuid4().hex}"
    box.group = place.locate(box.config, "box", systemd=True)
    return box.group


def shown(unit, *names):
    words = [f"-p{name}" for name in names]
    said = subprocess.run(["systemctl", "show", unit, *words], check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in said.splitlines())


@real
def test_real_systemd_has_a_container_as_a_scope(box, scope):
    box.linux["resources"].update(memory={"limit": 64 << 20}, pids={"limit": 30}, cpu={"shares": 512})
    box.config["annotations"] = {"org.systemd.property.TimeoutStopSec": "7"}
    first = box.start("/bin/sleep", "60")
    assert scope.path == f"/cowshedtest.slice/{scope.unit}"
    assert scope.processes() == [first.pid]
    limit = "MemoryLimit" if layout.host.v1 else "MemoryMax"
    names = ("ActiveState", "ControlGroup", "Delegate", "Slice", limit, "TasksMax", "TimeoutStopUSec")
    assert shown(scope.unit, *names) == {
        "ActiveState": "active", "ControlGroup": scope.path, "Delegate": "yes", "Slice": "cowshedtest.slice",
        limit: str(64 << 20), "TasksMax": "30", "TimeoutStopUSec": "7s",
    }  # fmt: skip
    folder = layout.host.v2 + scope.path
    if not layout.host.v1:
        assert read(f"{folder}/memory.max") == f"{64 << 20}\n"
    scope.update({"pids": {"limit": 40}})
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert shown(scope.unit, "TasksMax") == {"TasksMax": "40"}
    assert read(f"{scope.find('pids')}/pids.max") == "40\n"
    assert box.exec(first, "cat", "/proc/self/cgroup").out == box.exec(first, "cat", "/proc/1/cgroup").out
    scope.remove()
    assert first.wait() == 137
    assert shown(scope.unit, "LoadState", "ActiveState") == {"LoadState": "not-found", "ActiveState": "inactive"}
    assert not [path for path in scope.directories() if os.path.exists(path)]
    scope.remove()


@real
@pytest.mark.guest
def test_real_systemd_keeps_files_of_version_2(box, scope):
    """linux.resources.unified stands also when systemd sets another limit. What it cannot be told, or keeps less
    exactly, stands at least when the runtime has it set one."""
    told = {"memory.high": f"{48 << 20}", "pids.max": "44", "cpu.weight": "77", "cpuset.cpus": "0",
            "io.weight": "default 33"}  # fmt: skip
    files = {**told, "cpu.max": "12345 50000", "memory.oom.group": "1"}
    box.linux["resources"]["unified"] = files
    box.start("/bin/sleep", "60")

    def standing(names):
        return {name: read(f"{scope.find('pids')}/{name}").strip() for name in names}

    assert standing(files) == files
    scope.update({"memory": {"limit": 64 << 20}})
    assert standing([*files, "memory.max"]) == {**files, "memory.max": str(64 << 20)}
    subprocess.run(["systemctl", "set-property", "--runtime", scope.unit, "MemoryMax=63M"], check=True)
    assert standing([*told, "memory.max"]) == {**told, "memory.max": str(63 << 20)}


@real
def test_real_systemd_and_a_limit_of_one_process_in_a_group_of_the_scope(box, scope):
    box.linux["resources"]["pids"] = {"limit": 1}
    box.config["annotations"] = {systemd.SUBGROUP: "container"}
    scope.adopt(box.config)
    first = box.start("/bin/sleep", "60")
    assert scope.path.endswith(".scope/container")
    assert scope.processes() == [first.pid]
    scope.remove()
    assert shown(scope.unit, "ActiveState") == {"ActiveState": "inactive"}


@real
def test_real_systemd_keeps_to_the_device_rules(box, scope):
    """It sets those that it knows of, or none, whenever it sets a limit, and after daemon-reload."""

    def only(minor):
        return [{"allow": False}, {"allow": True, "type": "c", "major": 240, "minor": minor}]

    box.linux["resources"]["devices"] = only(250)
    first = box.start("/bin/sh", "-c", "mknod /tmp/250 c 240 250; mknod /tmp/251 c 240 251; echo; sleep 60")
    first.line()

    def opened():
        """Nobody has these devices: who may open one is told so."""
        return ["No such device" in box.exec(first, "/bin/head", "-c1", f"/tmp/{n}").err for n in (250, 251)]

    assert opened() == [True, False]
    scope.update({"pids": {"limit": 40}})
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "set-property", "--runtime", scope.unit, "TasksMax=41"], check=True)
    assert opened() == [True, False]
    scope.update({"devices": only(251)})
    subprocess.run(["systemctl", "set-property", "--runtime", scope.unit, "TasksMax=42"], check=True)
    assert opened() == [False, True]
    wanted = subprocess.run(["systemctl", "show", scope.unit, "-pDevicePolicy", "-pDeviceAllow"], capture_output=True)
    assert b"DevicePolicy=strict" in wanted.stdout
    assert b"DeviceAllow=/dev/char/240:251 rwm\n" in wanted.stdout
    assert b"240:250" not in wanted.stdout


@real
def test_real_systemd_keeps_no_unit_of_what_cannot_be_started(box, scope):
    box.linux["resources"]["memory"] = {"limit": 8192}
    box.refused()
    assert shown(scope.unit, "LoadState") == {"LoadState": "not-found"}


@real
def test_real_systemd_keeps_a_unit_that_is_in_use(box, scope):
    first = box.start("/bin/sleep", "60")
    with pytest.raises(LaunchError, match="systemd refuses"):
        box.start("/bin/true")
    assert scope.processes() == [first.pid]
