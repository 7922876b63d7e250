"""What becomes of work whose process died: each journal row whose byte is free is repeated or undone.

commit, remove       redo: the driver is called again; every call is idempotent by id
apply                undo: half an archive in a layer must never be committed
prepare, run         undo, container and all: whoever asked for it died before it was told of it
"""

from __future__ import annotations

from cowshed.errors import StoreError
from cowshed.layers import unused
from cowshed.state import layers as rows
from cowshed.storage.errors import InUse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.layers.layers import Layers


def repair(layers: Layers, number: int, op: str) -> bool:
    """Redo or undo the journal row of a layer whose byte the caller holds.

    True if the layer is gone and its rows are to be deleted; False if it stays, because its commit was completed or
    because it cannot be repaired now: something has it mounted, or a layer that stands on it is still there.
    """
    store = layers.store
    layer = layers.load(number)
    if op == "commit":
        return _commit(layers, number)
    if store.query("select 1 from layers where parent = ?", number):
        return False
    try:
        if op == "remove":
            layers.remove(layer)
        elif op in ("apply", "run", "prepare"):
            unused.prove(store, layer, layers.driver)
            try:
                layers.erase(layer)
            finally:
                store.locks.release("mounts", number)
        else:
            raise StoreError(f"journal entry {op} of layer {number} is not known", remedy="use a newer Cowshed")
    except InUse:
        return False
    return True


def _commit(layers: Layers, number: int) -> bool:
    from cowshed.state import journal
    from cowshed.storage import api

    row = journal.get(layers.store, number)
    found = rows.get(layers.store, number)
    if row is None or found is None:
        return False
    if found.kind == "active":
        try:
            layers.complete_commit(
                layers.load(number),
                chain_id=row.args["chain_id"],
                diff_id=row.args["diff_id"],
                durability=api.Durability(row.args["durability"]),
            )
        except InUse:
            return False
    return False
