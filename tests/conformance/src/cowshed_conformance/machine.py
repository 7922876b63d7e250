"""Random operations on a store, compared with a model that is a dictionary for each layer (case H04).

A counter-example is shrunk by Hypothesis and printed as the calls that lead to it; the run's seed repeats it.
"""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cowshed.storage import api
from cowshed_conformance import changes, crash, steps, tree
from cowshed_conformance.harness import Store
from cowshed_conformance.target import Target

PATHS = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a")
Content = dict[str, tuple[str, bytes]]  # path → (kind, data)


def explore(target: Target, path: str, *, examples: int, length: int) -> None:
    """Run so many random sequences of so many operations. AssertionError with the shortest that fails."""
    count = itertools.count()

    class Machine(_Machine):
        def __init__(self) -> None:
            super().__init__(Store(target, f"{path}/{next(count)}"))

    chosen = settings(
        max_examples=examples,
        stateful_step_count=length,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(seed(target.seed)(Machine), settings=chosen)


class _Machine(RuleBasedStateMachine):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.content: dict[api.Layer, Content] = {}  # what each living layer shows

    def teardown(self) -> None:
        self.store.discard()

    def _of(self, kind: api.Kind) -> list[api.Layer]:
        return [layer for layer in self.content if layer.kind is kind]

    def _leaf(self, layer: api.Layer) -> bool:
        return not any(other.parent == layer for other in self.content)

    # ------------------------------------------------------------ layers

    def _layer(self, data: st.DataObject, kind: api.Kind) -> api.Layer:
        return data.draw(st.sampled_from(self._of(kind)), label="layer")

    @rule(data=st.data(), point=st.integers(0, 25))
    def create(self, data: st.DataObject, point: int) -> None:
        parent = data.draw(st.sampled_from([None, *self._of(api.Kind.COMMITTED)]), label="parent")
        layer = self.store.plan(parent)
        self._call(crash.prepare(layer), point)
        self.content[layer] = dict(self.content[parent]) if parent is not None else {}

    @precondition(lambda self: self._of(api.Kind.ACTIVE))
    @rule(data=st.data(), point=st.integers(0, 25))
    def commit(self, data: st.DataObject, point: int) -> None:
        active = self._layer(data, api.Kind.ACTIVE)
        new = self.store.committed(active)
        self._call(crash.commit(active, new, api.Durability.NONE), point)
        self.content[new] = self.content.pop(active)

    @precondition(lambda self: self.content)
    @rule(data=st.data(), point=st.integers(0, 25))
    def remove(self, data: st.DataObject, point: int) -> None:
        layer = data.draw(st.sampled_from([x for x in self.content if self._leaf(x)]), label="layer")
        self._call(crash.remove(layer), point)
        del self.content[layer]

    def _call(self, work: crash.Work, point: int) -> None:
        """Make the call, or have it killed at a point first and then repeat it."""
        if point > 15:
            crash.kill_at(self.store, work, ("", point - 15))
            self.store.reopen()
        work(self.store)

    @rule()
    def purge(self) -> None:
        self.store.purge_all()
        assert self.store.leftovers() == []

    @rule()
    def reopen(self) -> None:
        self.store.reopen()

    # ------------------------------------------------------------ content

    @precondition(lambda self: self._of(api.Kind.ACTIVE))
    @rule(data=st.data(), path=st.sampled_from(PATHS), content=st.binary(max_size=4))
    def write(self, data: st.DataObject, path: str, content: bytes) -> None:
        layer = self._layer(data, api.Kind.ACTIVE)
        there = self.content[layer]
        assume(_has_parent(there, path) and there.get(path, ("file",))[0] == "file")
        self.store.change(layer, steps.file(path, content))
        there[path] = "file", content

    @precondition(lambda self: self._of(api.Kind.ACTIVE))
    @rule(data=st.data(), path=st.sampled_from(PATHS), content=st.binary(min_size=1, max_size=2))
    def append(self, data: st.DataObject, path: str, content: bytes) -> None:
        layer = self._layer(data, api.Kind.ACTIVE)
        there = self.content[layer]
        assume(there.get(path, ("",))[0] == "file")
        self.store.change(layer, steps.append(path, content))
        there[path] = "file", there[path][1] + content

    @precondition(lambda self: self._of(api.Kind.ACTIVE))
    @rule(data=st.data(), path=st.sampled_from(PATHS))
    def make_directory(self, data: st.DataObject, path: str) -> None:
        layer = self._layer(data, api.Kind.ACTIVE)
        there = self.content[layer]
        assume(_has_parent(there, path) and path not in there)
        self.store.change(layer, steps.directory(path))
        there[path] = "dir", b""

    @precondition(lambda self: self._of(api.Kind.ACTIVE))
    @rule(data=st.data(), path=st.sampled_from(PATHS))
    def make_link(self, data: st.DataObject, path: str) -> None:
        layer = self._layer(data, api.Kind.ACTIVE)
        there = self.content[layer]
        assume(_has_parent(there, path) and path not in there)
        self.store.change(layer, steps.symlink("a", path))
        there[path] = "link", b"a"

    @precondition(lambda self: self._of(api.Kind.ACTIVE))
    @rule(data=st.data(), path=st.sampled_from(PATHS))
    def delete(self, data: st.DataObject, path: str) -> None:
        layer = self._layer(data, api.Kind.ACTIVE)
        there = self.content[layer]
        assume(path in there)
        self.store.change(layer, steps.remove_all(path) if there[path][0] == "dir" else steps.remove(path))
        for name in [x for x in there if x == path or x.startswith(path + "/")]:
            del there[name]

    @precondition(lambda self: self._of(api.Kind.ACTIVE))
    @rule(data=st.data(), old=st.sampled_from(PATHS), new=st.sampled_from(PATHS))
    def move(self, data: st.DataObject, old: str, new: str) -> None:
        layer = self._layer(data, api.Kind.ACTIVE)
        there = self.content[layer]
        assume(old in there and new not in there and _has_parent(there, new) and not new.startswith(old + "/"))
        self.store.change(layer, steps.move_directory(old, new))
        for name in [x for x in there if x == old or x.startswith(old + "/")]:
            there[new + name[len(old) :]] = there.pop(name)

    # ------------------------------------------------------------ looking

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def view(self, data: st.DataObject) -> None:
        layer = data.draw(st.sampled_from(list(self.content)), label="layer")
        self._same(layer)

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def diff(self, data: st.DataObject) -> None:
        layer = data.draw(st.sampled_from(list(self.content)), label="layer")
        found = changes.of_driver(self.store, layer.parent, layer)
        below = self.content[layer.parent] if layer.parent is not None else {}
        wanted = _difference(below, self.content[layer])
        real = {
            path: kind for path, kind in found.items() if kind != "C" or path in wanted or not _was_dir(path, below)
        }
        real.pop(".", None)
        assert real == wanted, f"changes of {layer}"

    @rule()
    def scan(self) -> None:
        assert self.store.living() == {(layer.id, layer.kind) for layer in self.content}

    @precondition(lambda self: self.content)
    @rule()
    def view_all(self) -> None:
        for layer in self.content:
            self._same(layer)

    def _same(self, layer: api.Layer) -> None:
        with self.store.mount(layer, read_only=True) as root:
            found: Content = {}
            for path, node in tree.read(root).items():
                if path != ".":
                    data = steps.read(root, path) if node.kind == "file" else b""
                    found[path] = node.kind, data if node.kind == "file" else node.content.encode()
        assert found == self.content[layer], f"the tree of {layer}"


def _has_parent(there: Content, path: str) -> bool:
    above = path.rpartition("/")[0]
    return not above or there.get(above, ("",))[0] == "dir"


def _was_dir(path: str, below: Content) -> bool:
    """Directories change their times when a name in them does: that is a change, but not one that the model knows."""
    return below.get(path, ("",))[0] == "dir"


def _difference(below: Content, now: Content) -> changes.Changes:
    found: changes.Changes = {}
    for path in {*below, *now}:
        if path not in now:
            found[path] = "D"
        elif path not in below:
            found[path] = "A"
        elif below[path] != now[path]:
            found[path] = "C"
    return changes.collapse(found)
