"""M: mount plans and what is mounted by them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time

import pytest

from cowshed.layers.mounting import detached
from cowshed.storage import api, options
from cowshed.storage.errors import BadOption, InUse, StorageError
from cowshed_conformance import crash, hoststate, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_in_use import held
from cowshed_conformance.engine import Engine
from cowshed_conformance.harness import Store
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.namespaces import as_plain_user
from cowshed_conformance.steps import chmod, device, directory, file
from cowshed_conformance.target import Target
from cowshed_linux import mount, process


def image(store: Store) -> api.Layer:
    base = store.layer(file("a", b"1"), directory("d"), file("d/below", b"2"))
    return store.layer(file("b", b"3"), parent=base)


@core
def test_M01_plans_are_constant_and_the_same_in_every_process(store: Store) -> None:
    below = image(store)
    active = store.new(below)
    mounts = hoststate.mounts()
    asked = [(layer, read_only) for layer in (below, active) for read_only in (True, False)]
    plans = [repr(store.mounts(layer, read_only=ro)) for layer, ro in asked]
    for _ in range(10):
        assert [repr(store.mounts(layer, read_only=ro)) for layer, ro in asked] == plans

    def other() -> object:
        driver = store.open()
        try:
            return [repr(driver.mounts(layer, api.MountRequest(ro))) for layer, ro in asked]
        finally:
            driver.close()

    assert crash.answer(other) == plans, "another process is given other plans"
    with store.mount(active) as root:
        steps.do(root, file("new"))
        now = [repr(store.mounts(layer, read_only=ro)) for layer, ro in asked]
        # What is activated is mounted from a device that there is only meanwhile, and whose name the kernel chooses.
        assert now == plans or store.capabilities.activation, "mounting changes the plan"
    assert [repr(store.mounts(layer, read_only=ro)) for layer, ro in asked] == plans, "mounting has changed the plan"
    assert hoststate.mounts() == mounts, "mounts() has mounted something"


@core
def test_M02_a_layer_is_mounted_unmounted_and_mounted_again(store: Store, backing: Backing) -> None:
    active = store.new(image(store))
    target = backing.place()
    os.mkdir(target)
    for n in range(3):
        fd = store.detached(active)
        mount.attach(fd, target)
        os.close(fd)
        try:
            assert sorted(os.listdir(target)) == ["a", "b", "d", *(f"n{m}" for m in range(n))]
            steps.do(target, file(f"n{n}", b"x" * 1000), steps.append("a", b"+"))
        finally:
            mount.unmount(target)  # at once, not lazily: nothing may hold it
        assert os.listdir(target) == []
    assert store.read(active, "a") == b"1+++"


@core
def test_M03_two_mounts_of_one_layer_see_the_same_writes(store: Store) -> None:
    active = store.new(image(store))
    exclusive = store.mounts(active).exclusive
    first = store.detached(active)
    try:
        second = mount.beneath(first, "") if exclusive else store.detached(active)
        try:
            one, two = f"/proc/self/fd/{first}", f"/proc/self/fd/{second}"
            steps.do(one, steps.append("a", b"+"), file("new", b"4"), steps.remove("b"))
            assert steps.read(two, "a") == b"1+"
            steps.do(two, steps.append("a", b"-"), steps.append("new", b"5"))
            assert (steps.read(one, "a"), steps.read(one, "new")) == (b"1+-", b"45")
            assert sorted(os.listdir(one)) == sorted(os.listdir(two)) == ["a", "d", "new"]
        finally:
            os.close(second)
    finally:
        os.close(first)
    assert store.read(active, "new") == b"45"


@core
@pytest.mark.parametrize("read_only", [True, False])
def test_M03_a_committed_layer_is_mounted_as_often_as_wanted(store: Store, read_only: bool) -> None:
    layer = image(store)
    plan = store.mounts(layer, read_only=read_only)
    assert not plan.exclusive, "a committed layer cannot be the root of two containers' views"
    with store.mount(layer, read_only=read_only) as one, store.mount(layer, read_only=read_only) as two:
        tree.same(tree.read(one), tree.read(two), "two mounts of a committed layer differ")
        with store.mount(store.new(layer)) as three:
            steps.do(three, chmod("a", 0o600))
            tree.same(tree.read(one), tree.read(two), "a child's write shows in its parent")


@full
@pytest.mark.parametrize("propagation", [mount.PRIVATE, mount.SLAVE, mount.SHARED])
def test_M04_a_mount_shows_in_its_own_namespace_only(store: Store, backing: Backing, propagation: int) -> None:
    active = store.new(image(store))
    target = backing.place()
    os.mkdir(target)
    before = hoststate.mounts()

    def container() -> None:
        process.unshare(process.CLONE_NEWNS)
        mount.mount(None, "/", None, mount.REC | mount.SLAVE)
        mount.mount(None, "/", None, mount.REC | propagation)
        fd = store.detached(active)
        mount.attach(fd, target)
        os.close(fd)
        steps.do(target, file("new", b"1"))
        assert len(hoststate.mounts()) == len(before) + 1
        assert seen_outside() == before, "the mount shows in the namespace that the container's was made from"

    def seen_outside() -> tuple[str, ...]:
        with open(f"/proc/{os.getppid()}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            return tuple(sorted(line.split()[4] for line in lines))

    crash.in_child(container)
    assert hoststate.mounts() == before
    assert store.read(active, "new") == b"1"


@core
def test_M05_a_layer_that_someone_else_unmounts_lazily_stays_whole(store: Store, backing: Backing) -> None:
    active = store.new(image(store))
    target = backing.place()
    os.mkdir(target)
    fd = store.detached(active)
    mount.attach(fd, target)
    os.close(fd)
    kept = os.open(f"{target}/kept", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        mount.unmount(target, mount.MNT_DETACH)
        os.write(kept, b"written after the unmount")
    finally:
        os.close(kept)
    assert store.read(active, "kept") == b"written after the unmount"
    store.change(active, steps.append("a", b"+"))
    assert store.read(store.commit(active), "a") == b"1+"


@core
def test_M06_mounts_of_a_process_that_was_killed_hinder_nothing(store: Store) -> None:
    active = store.new(image(store))
    reader, writer = os.pipe()

    def container() -> None:
        fd = store.detached(active)
        steps.do(f"/proc/self/fd/{fd}", file("new", b"1"))
        os.write(writer, b"1")
        signal.pause()

    pid = crash.start(container)
    os.close(writer)
    assert os.read(reader, 1), "the process that mounts did not come up"
    os.close(reader)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    store.reopen()
    assert store.read(active, "new") == b"1"
    store.change(active, steps.append("new", b"2"))
    layer = store.commit(active)
    assert store.read(layer, "new") == b"12"
    store.driver.remove(layer)
    store.purge_all()
    assert not store.has(layer)


@core
def test_M07_nodev_nosuid_and_noexec_hold_on_a_layers_mount(store: Store) -> None:
    script = b"#!/bin/sh\nexit 0\n"
    below = store.layer(file("run", script, 0o755), device("null", 1, 3), chmod("null", 0o666))
    with store.tree(store.new(store.layer(file("x"), parent=below))) as fd:
        root = f"/proc/self/fd/{fd}"
        with open(f"{root}/null", "wb") as null:
            null.write(b"1")
        assert subprocess.run([f"{root}/run"], pass_fds=[fd], check=False).returncode == 0
        mount.set_attributes(fd, mount.ATTR_NODEV | mount.ATTR_NOSUID | mount.ATTR_NOEXEC)
        with pytest.raises(PermissionError):
            os.close(os.open(f"{root}/null", os.O_WRONLY | os.O_CLOEXEC))
        with pytest.raises(PermissionError):
            subprocess.run([f"{root}/run"], pass_fds=[fd], check=False)
        assert os.fstatvfs(fd).f_flag & os.ST_NOSUID
        steps.do(root, file("new"))


@core
@pytest.mark.parametrize(
    "name", ["lowerdir", "upperdir", "workdir", "context", "suid", "dev", "exec", "user_subvol_rm_allowed"]
)
def test_M07_no_option_of_mount_gets_in_but_what_the_driver_declares(target: Target, name: str) -> None:
    if name in {option.name for option in target.plugin.options}:
        marks.skip("capability", f"{name} is an option of the driver")
    with pytest.raises(BadOption) as raised:
        options.check(target.plugin, {**target.given, name: "/etc"})
    assert name in str(raised.value)
    for option in target.plugin.options:
        if option.kind is not str or option.choices:  # of a fixed set of words none brings another option along
            with pytest.raises(BadOption):
                options.check(target.plugin, {option.name: f"{option.default},{name}=/etc"})


@core
def test_M08_a_label_is_in_the_mount_where_the_kernel_knows_labels(store: Store) -> None:
    if not store.capabilities.selinux:
        marks.skip("capability", "selinux is denied")
    if not os.path.isdir("/sys/fs/selinux"):
        marks.skip("kernel", "this kernel runs without SELinux")
    label = "system_u:object_r:container_file_t:s0"
    active = store.new(image(store), file("new"))
    with store.activated(active):
        fd = detached(store.driver.mounts(active, api.MountRequest(False, selinux_label=label)))
    try:
        for name in (".", "a", "d", "new"):
            found = os.getxattr(f"/proc/self/fd/{fd}/{name}", "security.selinux").rstrip(b"\0")
            assert found == label.encode()
    finally:
        os.close(fd)


@core
def test_M09_a_directory_of_a_layer_is_mounted_by_itself(store: Store) -> None:
    active = store.new(image(store))
    with store.tree(active) as fd:
        below = mount.beneath(fd, "d")
        try:
            root = f"/proc/self/fd/{below}"
            assert os.listdir(root) == ["below"]
            steps.do(root, steps.append("below", b"+"), file("new", b"1"))
            with pytest.raises(OSError):
                os.lstat(f"{root}/a")
            mount.set_attributes(below, mount.ATTR_RDONLY)
            with pytest.raises(OSError) as raised:
                steps.do(root, file("more"))
            assert raised.value.errno == errno.EROFS
        finally:
            os.close(below)
        steps.do(f"/proc/self/fd/{fd}", file("d/more"))
    with store.mount(active, read_only=True) as there:
        assert sorted(os.listdir(f"{there}/d")) == ["below", "more", "new"]
        assert steps.read(there, "d/below") == b"2+"


@core
def test_M10_a_plain_user_mounts_layers_exactly_if_that_is_claimed(target: Target, backing: Backing) -> None:
    place = backing.place()
    os.mkdir(place)
    with Store(target, backing.place()) as store:
        claimed = store.capabilities.rootless
    answer = f"{place}/answer"

    def work(there: str) -> None:
        with open(f"{there}/answer", "w", encoding="ascii") as file_:
            try:
                with Store(target, f"{there}/store") as mine:
                    active = mine.new(mine.layer(file("a", b"1")), file("b", b"2"))
                    with mine.mount(active) as root:
                        file_.write("mounted" if sorted(os.listdir(root)) == ["a", "b"] else "wrong tree")
            except (OSError, StorageError) as error:
                file_.write(str(error))

    as_plain_user(place, work)
    with open(answer, encoding="ascii") as file_:
        said = file_.read()
    marks.claim("rootless", claimed, said == "mounted", f"a plain user's mount gives: {said}")


@core
def test_M11_the_error_of_a_failed_mount_says_what_the_kernel_says_and_to_what(store: Store) -> None:
    active = store.new(image(store))
    plan = store.mounts(active)
    step = plan.steps[-1]
    wrong: api.Mount
    if isinstance(step, api.Bind):
        wrong, named = api.Bind(f"{step.source}-is-not-there"), f"{step.source}-is-not-there"
    elif isinstance(step, api.Overlay):
        more = (*step.options, ("no_such_option", "1"))
        wrong = api.Overlay(step.lowers, step.upper, step.work, step.read_only, options=more)
        named = "no_such_option=1"
    elif isinstance(step, api.FileSystem):
        named = f"{step.source}-is-not-there"  # a wrong option some take in silence
        wrong = api.FileSystem(step.fstype, named)
    else:
        named = f"{step.branches[-1]}-is-not-there"
        wrong = api.Aufs((*step.branches[:-1], named), step.writable, step.options)
    before = hoststate.descriptors()
    with pytest.raises(OSError) as raised, store.activated(active):
        os.close(detached(api.MountPlan((*plan.steps[:-1], wrong))))
    assert raised.value.errno in (errno.ENOENT, errno.EINVAL)
    assert named in str(raised.value), f"the error does not say what could not be mounted: {raised.value}"
    assert os.strerror(raised.value.errno or 0) in str(raised.value)
    assert hoststate.descriptors() == before, "a failed mount has left a descriptor open"
    assert store.read(active, "a") == b"1"


@core
@budget(60)
def test_M12_what_keeps_a_mount_busy_is_named_with_its_namespace(target: Target, backing: Backing) -> None:
    with Engine(target, backing.place()) as engine:
        layer = engine.create(engine.pull("ab"))
        with held(engine, layer, "namespace") as pid:
            with pytest.raises(InUse) as raised:
                engine.commit(layer)
            assert "namespace" in str(raised.value)
            assert str(pid) in f"{raised.value} {raised.value.holders}"
        tree.same(engine.look(layer), engine.look(engine.commit(layer)), "committed, once it was free")


@core
def test_M12_an_unmount_that_is_busy_says_so_and_works_once_it_is_free(store: Store, backing: Backing) -> None:
    active = store.new(image(store))
    target = backing.place()
    os.mkdir(target)
    fd = store.detached(active)
    mount.attach(fd, target)
    os.close(fd)
    kept = os.open(f"{target}/a", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(OSError) as raised:
            mount.unmount(target)
        assert raised.value.errno == errno.EBUSY
        assert target in str(raised.value)
    finally:
        os.close(kept)
    until = time.monotonic() + 5
    while True:  # the kernel puts the last reference off until the process returns from the call
        try:
            mount.unmount(target)
            break
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
    store.driver.remove(active)
    assert not store.has(active)
