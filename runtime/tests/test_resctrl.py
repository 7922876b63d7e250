"""linux.intelRdt, with a directory in place of resctrl: no machine of ours has it."""

import os
from pathlib import Path

import pytest

from cowshed_runtime import spec
from cowshed_runtime.cgroup import layout, resctrl
from cowshed_runtime.cgroup.group import Entrance, Group


class Stand(resctrl.Class):
    """A directory does not fill itself: schemata and tasks appear where the kernel would put them."""

    def _make(self, lines):
        made = super()._make(lines)
        for file in ("schemata", "tasks"):
            open(f"{self.path}/{file}", "a").close()
        os.makedirs(f"{self.path}/mon_groups", exist_ok=True)
        return made

    def _write(self, lines):
        with open(f"{self.path}/schemata", "a") as file:
            file.writelines(f"{line}\n" for line in lines)


def made(tmp_path, **wanted):
    one = Stand(wanted, "box", str(tmp_path))
    one.create()
    return one


def text(one):
    with open(f"{one.path}/schemata") as file:
        return file.read()


def test_where_it_is_mounted():
    lines = "1 1 0:1 / /sys rw - sysfs sysfs rw\n2 1 0:2 / /sys/fs/resctrl rw - resctrl resctrl rw\n"
    assert (resctrl.mounted(lines), resctrl.mounted("")) == ("/sys/fs/resctrl", "")


def test_lines_in_the_order_of_the_specification(tmp_path):
    one = made(tmp_path, schemata=["L2:0=f"], memBwSchema="MB:0=20", l3CacheSchema="L3:0=7f0;1=1f")
    assert (one.path, text(one)) == (f"{tmp_path}/box", "L3:0=7f0;1=1f\nMB:0=20\nL2:0=f\n")


def test_a_class_without_schemata_must_be_there_and_is_not_written(tmp_path):
    with pytest.raises(OSError, match="there is no class of service"):
        made(tmp_path, closID="gold")
    os.mkdir(tmp_path / "gold")
    assert text(made(tmp_path, closID="gold")) == ""
    assert made(tmp_path, closID="/").path == str(tmp_path)


def test_a_class_with_other_schemata_is_refused(tmp_path):
    first = made(tmp_path, closID="gold", schemata=["L3:0=00ff;1=f"])
    assert text(made(tmp_path, closID="gold", l3CacheSchema="L3:1=0f")) == text(first)
    for line in ("L3:0=fe", "L3:2=f", "L2:0=f"):
        with pytest.raises(OSError, match="other schemata"):
            made(tmp_path, closID="gold", schemata=[line])


def test_an_error_leaves_nothing(tmp_path):
    one = Stand({"enableMonitoring": True, "closID": "gold"}, "box", str(tmp_path))
    (tmp_path / "gold/mon_groups/box").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        one.create()
    assert os.listdir(tmp_path / "gold/mon_groups") == ["box"]


def test_without_the_section_there_is_no_class():
    group = Group("box", within=layout.Layout(""))
    group.adopt({"linux": {"intelRdt": {}}})
    assert group.service is not None
    group.adopt({"linux": {}})
    assert group.service is None


def test_without_resctrl():
    one = resctrl.Class({"closID": "x"}, "box")
    one.top = ""
    with pytest.raises(OSError, match="no resctrl file system"):
        one.create()


def test_only_what_was_made_for_the_container_goes_with_it(tmp_path):
    named = made(tmp_path, closID="gold", schemata=["L3:0=f"], enableMonitoring=True)
    assert named.monitor == f"{tmp_path}/gold/mon_groups/box"
    named.remove()
    named.remove()
    assert os.path.isdir(named.path)
    assert not os.path.exists(named.monitor)


def test_the_process_enters_by_itself(tmp_path):
    group = Group("box", within=layout.Layout(""))
    group.service = made(tmp_path, closID="gold", schemata=["L3:0=f"], enableMonitoring=True)
    open(f"{group.service.monitor}/tasks", "w").close()
    entrance = Entrance(group)
    assert len(entrance.tasks) == 2
    pid = os.fork()
    if pid == 0:
        entrance.enter()
        os._exit(0)
    os.waitpid(pid, 0)
    entrance.close()
    assert [Path(path).read_text() for path in group.service.tasks()] == ["0", "0"]


def test_a_container_that_asks_for_it_without_resctrl_is_refused(box):
    if resctrl.mounted(Path("/proc/self/mountinfo").read_text()):
        pytest.skip("resctrl is mounted here")
    box.linux["intelRdt"] = {}
    assert "no resctrl file system" in str(box.refused())


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"closID": ".."}, "no class"),
        ({"closID": "a/b"}, "no class"),
        ({"memBwSchema": "L3:0=f"}, "start with MB:"),
        ({"schemata": ["L3:0=f\nMB:0=1"]}, "one line"),
        ({"enableMonitoring": "yes"}, "true or false"),
    ],
)
def test_what_is_no_value(box, wanted, said):
    box.linux["intelRdt"] = wanted
    box.process["args"] = ["true"]
    (problem,) = spec.validate(box.config)
    assert said in str(problem)
