"""Carrying a plan out. Each step is whole or not there: what a dead command had begun of one is undone by the next that
writes (journal: apply), and the same conversion, asked for again, goes on with the step after the last whole one.

A layer of an image gets a twin of the same chain id. A container gets a layer in the target, and in one transaction
becomes the one that has that: its id, name, files and volumes are untouched. The layers that they had stay.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

from cowshed import log
from cowshed.container.access import Held
from cowshed.convert import facts, sending
from cowshed.errors import Busy, Conflict, CowshedError, NoSpace, StoreError
from cowshed.layers import digest
from cowshed.layers.changes import of_trees
from cowshed.layers.difference import LayerDifference
from cowshed.layers.faults import step
from cowshed.layers.replay import Writing, replay
from cowshed.state import containers, conversions, records
from cowshed.state.locks import chain_byte
from cowshed.storage import api, errors
from cowshed.storage.errors import StorageError
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

    from cowshed.convert.plan import Plan, Step
    from cowshed.engine import Engine
    from cowshed.image.progress import Progress
    from cowshed.layers.digest import Mask
    from cowshed.layers.layers import Layers
    from cowshed.state.store import Transaction

LOCK = "convert"
_KEPT = 16  # layers of which the digests of all files are kept in memory
_WAIT = 3600.0  # seconds for another command that makes the same layer


class Alone:
    """`with Alone(engine):` no other command converts, accepts or rolls back. Busy."""

    def __init__(self, engine: Engine) -> None:
        self._locks = engine.store.locks

    def __enter__(self) -> None:
        if not self._locks.exclude(LOCK):
            raise Busy("another command converts this store", remedy="try again when it has ended")

    def __exit__(self, *_: object) -> None:
        self._locks.let_go(LOCK)


def begin(engine: Engine, plan: Plan, *, lossy: bool) -> None:
    """Write down that a plan is about to be carried out, and make the target's store if there is none. Conflict if a
    conversion to another driver is not accepted yet."""
    store, target = engine.store, plan.target
    there = conversions.get(store)
    if there is not None and there.target != target:
        raise Conflict(
            f"the conversion to {there.target} is not accepted yet",
            remedy="cowshed storage accept, or cowshed storage rollback",
        )
    layers = engine.layers(target)
    fresh = not conversions.holds(store, target) and not any(  # a store of an earlier life may have been adopted
        found.kind is api.ObjectKind.LAYER for found in layers.driver.scan()
    )
    with store.transaction() as tx:
        conversions.begin(tx, conversions.Conversion(target, plan.sources, fresh, lossy, time.time_ns()))
    step("convert.begun")


class Conversion:
    """One run of a plan."""

    def __init__(self, engine: Engine, plan: Plan, progress: Progress) -> None:
        self._engine, self._plan, self._progress = engine, plan, progress
        self._target = engine.layers(plan.target)
        self._masks: Mapping[str, Mask] = plan.masks
        # What was found in trees a moment ago, for the layers that stand on them: by driver and chain id.
        self._known: dict[tuple[str, str], Mapping[bytes, bytes]] = {}
        self.layers = self.containers = 0  # that were made
        self.shared = self.copied = self.sent = 0  # bytes, bytes, layers
        self.failed: list[str] = []

    def run(self) -> None:
        """Every step. One that fails is told in `failed` and stops only those that stand on it; NoSpace and Busy end it
        all."""
        began = time.monotonic()
        self._steps()
        if not self.failed and self._plan.seconds >= 1:  # else there is nothing to be learnt from it
            facts.learn(self._engine.store, self._plan.seconds, time.monotonic() - began)

    def _steps(self) -> None:
        lost: set[str] = set()
        count = len(self._plan.work)
        n = 0
        for one in self._plan.steps:
            if one.below and one.below in lost:
                lost.add(one.chain)
                self.failed.append(f"{one.kind} {one.name}: it stands on one that was not")
                continue
            if one.how != "there":
                n += 1
                self._progress.step(f"{n} of {count}: {one.kind} {one.name} of driver {one.source}: {one.how}")
            try:
                if one.kind == "layer":
                    self._layer(one)
                else:
                    self._container(one)
            except (NoSpace, Busy):
                raise
            except (CowshedError, StorageError, OSError) as error:
                if _is_full(error) and one.quota == api.Quota():  # else it may be its own limit
                    raise NoSpace(
                        f"no space for {one.kind} {one.name} in driver {self._plan.target}",
                        remedy="make room and say the same again: what is done is kept",
                    ) from None
                lost.add(one.chain)
                self.failed.append(f"{one.kind} {one.name}: {_words(error)}")

    # ------------------------------------------------------------ layers of images

    def _layer(self, one: Step) -> None:
        target = self._target
        byte = chain_byte(target.name, one.chain)
        locks = target.store.locks
        locks.take("chains", byte, wait=_WAIT, what=f"layer {one.name}")
        try:
            twin = target.by_chain_id(one.chain)
            if twin is not None:
                self._note_twin(one, twin)
            else:
                self._make_layer(one)
        finally:
            locks.release("chains", byte)

    def _note_twin(self, one: Step, twin: api.Layer) -> None:
        """It was in the target before, or was made by an earlier run."""
        store = self._target.store
        missing = [number for number in (one.number, *one.others) if not conversions.is_noted(store, number)]
        if missing:
            with store.transaction() as tx:
                made = conversions.was_made(tx, twin.number)
                for number in missing:
                    conversions.note(tx, number, twin.number, made=made, digest="")

    def _make_layer(self, one: Step) -> None:
        source, target = self._engine.layers(one.source), self._target
        layer = source.load(one.number)
        below = target.by_chain_id(one.below) if one.below else None
        if one.below and below is None:
            raise Busy(f"the layer below {one.name} was removed meanwhile", remedy="try again")
        if one.how.startswith("send "):
            try:
                self._send(one, source, layer, below)
                return
            except (CowshedError, StorageError, OSError) as error:
                log.info(f"layer {one.name} cannot be sent ({_words(error)}): it is copied")
        active = target.begin(below)
        try:
            changed = self._fill(source, layer, active)
            step("convert.layer.filled")
            sealed = target.seal(active, api.Durability.COMMIT)
            step("convert.layer.sealed")
            value = self._verify(one, source, layer, sealed, changed)
        except BaseException:
            target.abandon(active)
            raise
        self._publish(one, sealed, value)

    def _publish(self, one: Step, sealed: api.Layer, value: str) -> None:
        def note(tx: Transaction) -> None:
            conversions.note(tx, one.number, sealed.number, made=True, digest=value)
            for number in one.others:
                conversions.note(tx, number, sealed.number, made=True, digest="")

        self._target.publish([(sealed, one.chain, one.diff)], "commit", note)
        self.layers += 1
        step("convert.layer.published")

    def _send(self, one: Step, source: Layers, layer: api.Layer, below: api.Layer | None) -> None:
        target = self._target
        sender, receiver = source.driver, target.driver
        assert api.has_transfer(sender)
        assert api.has_transfer(receiver)
        with target.store.transaction() as tx:
            reserved = target.reserve(tx, below, "apply")
        new = api.Layer(reserved.id, reserved.number, api.Kind.COMMITTED, below)
        try:
            base = layer.parent
            data = sending.send(sender, layer, base, receiver, new, one.how.removeprefix("send "))
            step("convert.layer.sent")
            sealed = api.Layer(new.id, new.number, new.kind, new.parent, data)
            value = self._verify(one, source, layer, sealed, None)
        except BaseException:
            target.abandon(new)
            raise
        self._publish(one, sealed, value)
        self.sent += 1

    # ------------------------------------------------------------ containers

    def _container(self, one: Step) -> None:
        engine, store = self._engine, self._engine.store
        row = containers.find(store, one.container)
        if row.driver == self._target.name:
            return  # by another command, which has ended meanwhile
        with Held(engine, row) as held:
            if held.running:
                raise Conflict(f"container {row.name} was started meanwhile", remedy="stop it, and convert it again")
            store.locks.take("layers", row.number, what=f"container {row.name}")
            try:
                self._make_container(one, row.number)
            finally:
                store.locks.release("layers", row.number)

    def _make_container(self, one: Step, number: int) -> None:
        source, target, store = self._engine.layers(one.source), self._target, self._engine.store
        layer = source.load(number)
        below = target.by_chain_id(one.below) if one.below else None
        if one.below and below is None:
            raise Busy(f"the layer below container {one.name} was removed meanwhile", remedy="try again")
        with store.transaction() as tx:
            active = target.reserve(tx, below, "apply")
        step("convert.container.written")
        try:
            active = target.prepare(active, api.LayerOptions(quota=one.quota))
            changed = self._fill(source, layer, active, sync=True)
            step("convert.container.filled")
            value = self._verify(one, source, layer, active, changed)
            if not store.locks.try_take("containers", active.number):
                raise StoreError(f"container number {active.number} is in use", remedy="cowshed system check")
            try:
                with store.transaction() as tx:
                    target.finish(tx, active)
                    conversions.note(tx, number, active.number, made=True, digest=value, container=one.container)
                    conversions.switch(tx, number, active.number, target.name)
            finally:
                store.locks.release("containers", active.number)
        except BaseException:
            if containers.get(store, active.number) is None:  # else it was interrupted just after that
                target.abandon(active)
            raise
        self.containers += 1
        step("convert.container.switched")
        store.locks.release("layers", active.number)
        records.make_durable(store, [("containers", one.container)])

    # ------------------------------------------------------------ trees

    def _fill(self, source: Layers, layer: api.Layer, active: api.Layer, *, sync: bool = False) -> set[bytes] | None:
        """Make in the twin of a layer what it lacks; the paths of that, None if they do not tell what to look at."""
        mask = self._masks[source.name]
        above = layer.parent, active.parent
        exact = above == (None, None) or (
            above[0] is not None
            and above[1] is not None
            and conversions.same_tree(source.store, above[0].number, above[1].number)
        )
        with LayerDifference(source, layer) if exact else _Compared(source, layer, self._target, active) as difference:
            found = difference.found
            mounted = self._target.mounted(active, read_only=False)
            with (
                Writing(self._target.driver, active, mounted) as (root, whiteouts),
                _Synced(root) if sync else nullcontext(),
            ):
                done = replay(found, difference.root, root, private=difference.private, mask=mask, whiteouts=whiteouts)
        self.shared += done.shared
        self.copied += done.copied
        return {changed.path for changed in (*found.changes, *found.linked)} if exact else None

    def _verify(self, one: Step, source: Layers, layer: api.Layer, twin: api.Layer, changed: set[bytes] | None) -> str:
        """The digest that both trees have. StoreError if they have not the same."""
        values = []
        for layers, each in ((source, layer), (self._target, twin)):
            known = self._known.get((layers.name, one.below)) if one.below else {}
            with layers.mounted(each, read_only=True) as root:
                found = digest.of_tree(
                    root, self._masks[source.name], changed=changed if known is not None else None, known=known
                )
            values.append(found.value)
            if one.chain:
                self._keep(layers.name, one, found.contents)
        step("convert.verified")
        if values[0] != values[1]:
            raise StoreError(
                f"the tree in driver {self._target.name} is not the same as in {source.name}",
                remedy="cowshed system check --deep; or consent to losses with --lossy",
            )
        return values[0]

    def _keep(self, driver: str, one: Step, contents: Mapping[bytes, bytes]) -> None:
        """The next steps are those that stand on this one."""
        if len(self._known) >= _KEPT:
            del self._known[next(iter(self._known))]
        self._known[driver, one.chain] = contents


class _Compared:
    """`with _Compared(…) as difference:` what a layer's tree has that its twin, still unmade, has not. For one that
    stands on a layer which was not made from that below."""

    private = ""

    def __init__(self, source: Layers, layer: api.Layer, target: Layers, twin: api.Layer) -> None:
        self._upper = source.mounted(layer, read_only=True)
        self._lower = target.mounted(twin.parent, read_only=True) if twin.parent is not None else None

    def __enter__(self) -> Self:
        self.root = self._upper.__enter__()
        try:
            if self._lower is None:
                self.found = of_trees(None, self.root)
                return self
            with self._lower as below:
                self.found = of_trees(below, self.root)
        except BaseException:
            self._upper.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._upper.__exit__(*error)


class _Synced:
    """`with _Synced(root):` what is written to its file system is durable afterwards. syncfs(2) tells errors only
    since its descriptor was opened."""

    def __init__(self, root: int) -> None:
        self._root = root

    def __enter__(self) -> None:
        self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)  # may be of O_PATH

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                files.syncfs(self._fd)
        finally:
            os.close(self._fd)


def _is_full(error: Exception) -> bool:
    return isinstance(error, errors.NoSpace) or (isinstance(error, OSError) and error.errno in (28, 122))


def _words(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
    remedy = getattr(error, "remedy", "")
    return f"{text}: {remedy}" if remedy else text
