"""V: layers carried to every other driver that is usable here, and back; and the command that does it for a store, when
it is killed, undone, or beside what runs."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sqlite3
from collections.abc import Iterator, Sequence

import pytest

from cowshed.errors import CowshedError, NoSpace
from cowshed.storage import api
from cowshed.storage.errors import LayerId, StorageError, Unsupported
from cowshed_conformance import archive, carry, marks, randoms, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_commands import layers as of_image
from cowshed_conformance.cases.test_content import ACCESS
from cowshed_conformance.cases.test_usage import MIB, fill
from cowshed_conformance.commandline import CommandLine, command_line, image
from cowshed_conformance.harness import Store, sync, usage
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.steps import chmod, chown, directory, file, set_xattr
from cowshed_conformance.target import Target


def chain(store: Store) -> list[api.Layer]:
    """The layers of an image, with what archives have to say in special ways."""
    base = store.new(
        None,
        file("a", b"1" * 5000), directory("d", 0o2751), file("d/one", b"2"), file("gone", b"3"), directory("e"),
        file("e/old", b"4"), steps.symlink("../a", "d/s"), steps.fifo("p"), steps.device("null", 1, 3),
        set_xattr("a", "user.told", b"\0\xff"), chown("d", 7, 8), file(b"odd \xff\n", b"5"),
        file("sparse"), steps.truncate("sparse", 8 << 20), steps.write_at("sparse", 4 << 20, b"6"),
        steps.times("a", 10**18 + tree.granularity),
    )  # fmt: skip
    base = kept(store, base)
    middle = store.new(
        base,
        steps.remove("gone"), steps.remove_all("e"), directory("e"), file("e/new", b"7"), steps.append("a", b"+"),
        chmod("d/one", 0o4700), file("first", b"8"), steps.link("first", "second"),
    )  # fmt: skip
    middle = kept(store, middle)
    top = store.new(middle, steps.rename("d/one", "d/moved"), steps.remove("p"), chown(".", 1, 2))
    return [base, middle, kept(store, top)]


def kept(store: Store, layer: api.Layer) -> api.Layer:
    """Commit it, with times that every store of this run keeps in full: else a digest would tell those that do not."""
    if tree.granularity > 1:
        with store.mount(layer) as root:
            tree.cut_times(root)
    return store.commit(layer)


def same_in(one: Store, layers: list[api.Layer], other: Store, done: carry.Carried) -> None:
    for layer in layers:
        why = f"layer of {one.target.name} in {other.target.name}"
        tree.same(one.look(layer), other.look(done.twins[layer]), why)


@core
@budget(120)
def test_V01_a_chain_has_the_same_trees_and_digests_in_every_other_driver(
    store: Store, target: Target, backing: Backing
) -> None:
    mine = chain(store)
    for other in carry.partners(target, backing):
        with another(other, backing) as partner:
            done = carry.carry(store, mine, partner)
            same_in(store, mine, partner, done)
            assert carry.digests(partner, list(done.twins.values())) == list(done.digests.values())
            # and the other way: what that driver made itself
            theirs = chain(partner)
            done = carry.carry(partner, theirs, store)
            same_in(partner, theirs, store, done)
            assert carry.digests(store, list(done.twins.values())) == list(done.digests.values())


@contextlib.contextmanager
def another(target: Target, backing: Backing) -> Iterator[Store]:
    made = Store(target, backing.place())
    try:
        yield made
    finally:
        made.discard()


@full
def test_V01_a_chain_is_sent_and_received_in_the_drivers_own_formats(store: Store, backing: Backing) -> None:
    driver = store.driver
    if not api.has_transfer(driver):
        marks.skip("capability", "transfer_formats is empty")
    layers = chain(store)
    for fmt in store.capabilities.transfer_formats:
        with another(store.target, backing) as second:
            receiver, twin = second.driver, None
            assert api.has_transfer(receiver)
            for layer in layers:
                pipe = io.BytesIO()
                driver.send(layer, layer.parent, fmt, pipe)
                new = api.Layer(layer.id, layer.number, api.Kind.COMMITTED, twin)
                data = receiver.receive(new, twin, fmt, io.BytesIO(pipe.getvalue()), api.Durability.NONE)
                twin = api.Layer(new.id, new.number, new.kind, new.parent, data)
                tree.same(store.look(layer), second.look(twin), f"received as {fmt}")
            assert second.leftovers() == []
            bad = api.Layer(LayerId("b" * 32), 99, api.Kind.COMMITTED, None)
            with pytest.raises((StorageError, OSError)):
                receiver.receive(bad, None, fmt, io.BytesIO(b"rubbish" * 1000), api.Durability.NONE)
            second.driver.remove(bad)
            second.purge_all()
            assert second.leftovers() == []


@core
@budget(60)
def test_V02_a_containers_layer_keeps_content_owners_and_limit(store: Store, target: Target, backing: Backing) -> None:
    mine = chain(store)
    quota = api.Quota(bytes=8 * MIB)
    container = store.prepare(store.plan(mine[-1]), limit_of(store, quota))
    store.change(
        container, file("log", b"x" * 9000), chown("log", 1000, 1001), chmod("log", 0o640), directory("home", 0o700),
        chown("home", 33, 34), steps.remove("second"), set_xattr("log", "user.x", b"y"),
    )  # fmt: skip
    wanted = store.look(container)
    for other in carry.partners(target, backing):
        with another(other, backing) as partner:
            done = carry.carry(store, mine, partner)
            twin = partner.prepare(partner.plan(done.twins[mine[-1]]), limit_of(partner, quota))
            _, data = archive.of_engine(store, mine[-1], container)
            archive.unpack(partner, twin, data)
            tree.same(wanted, partner.look(twin), f"a container's layer of {target.name} in {other.name}")
            if partner.capabilities.quota is api.QuotaScope.OWN:
                with partner.mount(twin) as root:
                    assert fill(root, 16) <= 8, "the limit did not come along"
            tree.same(wanted, store.look(container), "the source changed")


def limit_of(store: Store, quota: api.Quota) -> api.LayerOptions:
    """The limit, where the driver has limits that count a layer's own bytes."""
    own = store.capabilities.quota is api.QuotaScope.OWN
    return api.LayerOptions(quota=quota if own else api.Quota())


FEATURES = {
    "attributes of users": [file("a"), set_xattr("a", "user.x", b"1")],
    "attributes of overlay": [file("a"), set_xattr("a", "trusted.overlay.x", b"1")],
    "attributes of root": [file("a"), set_xattr("a", "trusted.x", b"1")],
    "access lists": [file("a"), set_xattr("a", "system.posix_acl_access", ACCESS)],
    "device 0:0": [steps.device("none", 0, 0)],
    "hard links": [file("a", b"1"), steps.link("a", "b")],
    "holes": [file("a"), steps.truncate("a", 1 << 20)],
    "set-id bits": [file("a"), chmod("a", 0o6755)],
    "sockets": [steps.socket("s")],
}


@full
@budget(60)
@pytest.mark.parametrize("feature", list(FEATURES))
def test_V05_what_is_lost_was_known_before_from_the_capabilities(
    store: Store, target: Target, backing: Backing, feature: str
) -> None:
    for other in carry.partners(target, backing):
        with another(other, backing) as partner:
            for source, sink in ((store, partner), (partner, store)):
                active = source.new()
                try:
                    source.change(active, *FEATURES[feature])
                except OSError:
                    continue  # it has none to lose
                layer = source.commit(active)
                before = {path: node for path, node in source.look(layer).items() if node.kind != "socket"}
                before["."] = source.look(layer)["."]
                if len(before) == 1 and feature != "sockets":
                    continue  # it takes the file for something of its own
                known = carry.losses(before, source.capabilities) | carry.losses(before, sink.capabilities)
                where = f"{feature} of {source.target.name} in {sink.target.name}"
                try:
                    done = carry.carry(source, [layer], sink)
                except (CowshedError, StorageError, OSError) as error:
                    gone = {str(error)} if not known else set()
                else:
                    gone = carry.lost(before, sink.look(done.twins[layer]))
                for what in gone:
                    assert any(what.startswith(name) for name in known), f"{where}: lost and not foretold: {what}"


@core
def test_V05_that_a_limit_is_lost_was_known_before(store: Store) -> None:
    for quota in (api.Quota(bytes=8 * MIB), api.Quota(inodes=1000)):
        known = carry.losses({}, store.capabilities, quota=quota)
        planned = store.plan()
        try:
            store.prepare(planned, api.LayerOptions(quota=quota))
            assert not known, f"{known} was foretold, and yet the layer has its limit"
        except Unsupported:
            assert known, "a limit is refused that the capabilities promise"


@full
@budget(120)
def test_V06_a_target_that_is_too_small_is_known_before_and_stops_clean(target: Target, backing: Backing) -> None:
    for other in carry.partners(target, backing):
        with another(other, backing) as source, backing.own(64 << 20) as system:
            big = source.layer(*[file(f"f{n}", os.urandom(MIB)) for n in range(24)])
            with Store(target, f"{system.path}/store") as sink:
                filler = sink.new()
                with sink.mount(filler) as root:
                    fill_but(root, 8)
                free = sink.driver.health().data_free
                assert free is None or free < usage(source, big), "nothing tells before that the target is too small"
                before = sink.living()
                planned = sink.new()
                _, data = archive.of_engine(source, None, big)
                with pytest.raises(NoSpace):
                    archive.unpack(sink, planned, data)
                sink.driver.remove(planned)
                sink.purge_all()
                assert sink.living() == before
                assert sink.leftovers() == []
                sink.driver.remove(filler)
                sink.purge_all()
                done = carry.carry(source, [big], sink)
                tree.same(source.look(big), sink.look(done.twins[big]), "with space again")


def fill_but(root: str, mebibytes: int) -> None:
    """Take all space but so much, as a layer has it."""
    taken = fill(root, 1 << 20)
    for n in range(taken - mebibytes, taken + 1):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{root}/f{n}")
    sync(root)


@core
@budget(60)
def test_V07_a_second_run_carries_only_what_is_new(store: Store, target: Target, backing: Backing) -> None:
    mine = chain(store)
    for other in carry.partners(target, backing):
        with another(other, backing) as partner:
            done = carry.carry(store, mine, partner)
            before, numbers = partner.living(), partner.number
            more = store.layer(file("later", b"9"), parent=mine[-1])
            carry.carry(store, [*mine, more], partner, done)
            assert partner.number == numbers + 1, "layers that were there were made again"
            twin = done.twins[more]
            assert partner.living() - before == {(twin.id, twin.kind)}
            tree.same(store.look(more), partner.look(twin), "the new layer")


@full
@budget(120)
def test_V09_there_and_back_again_gives_the_same_digests(
    store: Store, target: Target, backing: Backing, chance: random.Random
) -> None:
    mine = chain(store)
    for _ in range(3):
        active = store.new(mine[-1])
        with store.mount(active) as root:
            randoms.change(root, chance, 25)
        mine.append(kept(store, active))
    for other in carry.partners(target, backing):
        with another(other, backing) as partner:
            there = carry.carry(store, mine, partner)
            back = carry.carry(partner, list(there.twins.values()), store)
            # Of names that a copy-up parted from their file, each copy is a file of its own: from there on all agree.
            if store.capabilities.hard_links_survive_copy_up and partner.capabilities.hard_links_survive_copy_up:
                assert list(back.digests.values()) == list(there.digests.values())
            again = carry.carry(store, list(back.twins.values()), partner)
            assert list(again.digests.values()) == list(back.digests.values())


# ---------------------------------------------------------------- the command

SCRIPT = "echo x > /srv/mine; echo + >> /srv/one; rm -r /srv/deep; mv /tmp /moved"


@contextlib.contextmanager
def two_drivers(target: Target, backing: Backing) -> Iterator[tuple[CommandLine, list[str], list[str]]]:
    """A store with an image and a container on the driver under test; the words to convert it to another, and back."""
    other = next(carry.partners(target, backing))
    with command_line(target, backing.place()) as cowshed:
        cowshed.ok("load", "-q", feed=image("test/image:1", *of_image()))
        cowshed.ok("run", "--name", "one", "test/image:1", "sh", "-c", SCRIPT)
        words = ["storage", "convert", "--all", "-q", "--to"]
        at = other.at(f"{cowshed.root}/drivers/{other.plugin.name}")
        options = [f"{key}={at[key]}" for key in at if at[key] != other.options[key]]
        there = [*words, other.plugin.name, *[word for pair in options for word in ("--to-option", pair)]]
        yield cowshed, there, [*words, target.plugin.name]


def content(cowshed: CommandLine, name: str = "one") -> dict[str, tuple[object, ...]]:
    found = cowshed.files(name, "/srv/.") | cowshed.files(name, "/moved") | cowshed.files(name, "/bin")
    return {
        path: (i.type, i.mode, i.uid, i.gid, i.size, i.mtime, i.linkname, i.pax_headers.get("mtime"))
        for path, i in found.items()
    }


def rows_of(cowshed: CommandLine) -> list[tuple[object, ...]]:
    """The layers of the driver under test, as the database has them."""
    with contextlib.closing(sqlite3.connect(f"file:{cowshed.root}/db.sqlite?mode=ro", uri=True)) as database:
        return database.execute("select * from layers where driver = ? order by number", (cowshed.name,)).fetchall()


def container_of(cowshed: CommandLine, name: str = "one") -> str:
    """What is the same of it on any driver."""
    return cowshed.ok("inspect", "--format", "{{.Id}} {{.Image}} {{.Name}} {{.Created}} {{.State.ExitCode}}", name)


def steps_of(cowshed: CommandLine, path: str, words: Sequence[str]) -> list[str]:
    """The names of all steps that a command goes through, each once."""
    cowshed.ok(*words, fault=f"trace@{path}")
    with open(path, encoding="utf-8") as file:
        return list(dict.fromkeys(file.read().split()))


def kill_each(cowshed: CommandLine, steps_: Sequence[str], words: Sequence[str], undo: Sequence[str] = ()) -> list[str]:
    """Kill a command at each of these steps, and say it again each time; the steps that it came to.

    undo: said after one that came to its end instead, what was left by the one before having no need of the step (a
    pool that is there is not made); then it goes through all steps again.
    """
    killed = []
    for name in steps_:
        for _ in range(2 if undo else 1):
            done = cowshed(*words, fault=f"kill@{name}")
            assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode(errors="replace")
            if done.returncode:
                killed.append(name)
                break
            if undo:
                cowshed.ok(*undo)
    return killed


@full
@budget(300)
def test_V03_a_conversion_that_is_killed_goes_on_and_its_source_stays(target: Target, backing: Backing) -> None:
    with two_drivers(target, backing) as (cowshed, there, back):
        before, box, source = content(cowshed), container_of(cowshed), rows_of(cowshed)
        # The driver under test gives, which another is killed over ...
        named = ["convert.verified:2", "convert.container.filled"]
        assert kill_each(cowshed, named, there) == named
        assert rows_of(cowshed) == source, "the source changed"
        cowshed.ok(*there)
        assert (content(cowshed), container_of(cowshed)) == (before, box)
        named = ["accept.removed"]
        assert kill_each(cowshed, named, ("storage", "accept", "-f", "-q")) == named
        assert cowshed.ok("system", "check", "--deep") == "clean\n"
        assert rows_of(cowshed) == []
        # ... and takes, at every step.
        undo = ("storage", "rollback", "-f", "-q")
        named = steps_of(cowshed, backing.place("trace"), back)
        assert container_of(cowshed) == box
        cowshed.ok(*undo)
        assert rows_of(cowshed) == []
        assert len(named) >= 10
        assert kill_each(cowshed, named, back, undo) == named
        cowshed.ok(*back)
        assert (content(cowshed), container_of(cowshed)) == (before, box)
        cowshed.ok("storage", "accept", "-f", "-q")
        assert len(rows_of(cowshed)) == len(source)
        assert (content(cowshed), container_of(cowshed)) == (before, box)
        assert cowshed.ok("start", "-a", "one", status=1) == "", "its script finds that /srv/deep is gone already"
        assert cowshed.ok("system", "check", "--deep") == "clean\n"


@full
@budget(120)
def test_V04_rolled_back_until_it_is_accepted_and_not_afterwards(target: Target, backing: Backing) -> None:
    with two_drivers(target, backing) as (cowshed, there, back):
        before, box, source = content(cowshed), container_of(cowshed), rows_of(cowshed)
        cowshed.ok(*there)
        cowshed.ok("storage", "rollback", "-f", "-q")
        assert (rows_of(cowshed), content(cowshed), container_of(cowshed)) == (source, before, box)
        cowshed.ok(*there)
        cowshed.ok("cp", "-", "one:/srv", feed=archive.pack([archive.member("since", b"new\n")]))
        refused = cowshed("storage", "rollback", "-f")
        assert refused.returncode == 125
        assert b"container one has written something since" in refused.stderr
        assert cowshed.text("one", "/srv/since") == b"new\n"
        cowshed.ok("storage", "rollback", "-f", "-q", "--lossy")
        assert (rows_of(cowshed), content(cowshed)) == (source, before)
        cowshed.ok(*there)
        cowshed.ok("storage", "accept", "-f", "-q")
        assert b"no conversion waits" in cowshed("storage", "rollback", "-f").stderr
        assert (rows_of(cowshed), content(cowshed)) == ([], before)
        cowshed.ok(*back)
        cowshed.ok("storage", "accept", "-f", "-q")
        assert (len(rows_of(cowshed)), content(cowshed)) == (len(source), before)
        assert cowshed.ok("system", "check", "--deep") == "clean\n"


@full
@budget(120)
def test_V08_what_runs_is_refused_or_left_out_and_goes_on(target: Target, backing: Backing) -> None:
    with two_drivers(target, backing) as (cowshed, there, _):
        cowshed.ok("run", "-d", "--name", "up", "test/image:1", "sh", "-c", "echo 1 > /srv/w; sleep 1000")
        named = [*[word for word in there if word != "--all"], "up"]
        refused = cowshed(*named)
        assert refused.returncode == 125
        assert b"container up: it runs" in refused.stderr
        done = cowshed(*there)
        assert done.returncode == 0
        assert b"left out: container up" in done.stderr
        cowshed.ok("exec", "up", "sh", "-c", "echo 2 >> /srv/w; rm /srv/one")
        cowshed.ok("storage", "accept", "-f", "-q")
        cowshed.ok("exec", "up", "sh", "-c", "echo 3 >> /srv/w")
        cowshed.ok("kill", "up")
        cowshed.ok("wait", "up")
        assert {row[3] for row in rows_of(cowshed)} == {"active", "committed"}, "it stays, with what it stands on"
        cowshed.ok(*named)
        assert cowshed.text("up", "/srv/w") == b"1\n2\n3\n"
        assert "D /srv/one" in cowshed.ok("diff", "up").splitlines()
        cowshed.ok("storage", "accept", "-f", "-q")
        assert rows_of(cowshed) == []
        assert cowshed.ok("system", "check", "--deep") == "clean\n"
