"""The layers of a store as trees, and the chains of references that keep each."""

from __future__ import annotations

from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cowshed.space.inventory import Inventory
    from cowshed.state.rows import LayerRow


@record(frozen=True)
class Branch:
    """One layer in a tree."""

    row: LayerRow
    depth: int  # layers below it
    drawn: str  # the lines that lead to it
    images: tuple[str, ...]  # names of the images whose top it is
    container: str  # whose own layer it is; ""


def branches(inventory: Inventory, only: Collection[str] = ()) -> Iterator[Branch]:
    """Every layer, each below the one that it stands on, driver by driver; only: ids of layers, none for all."""
    children: dict[int | None, list[LayerRow]] = {}
    numbers = {row.number for row in inventory.layers.values()}
    for row in sorted(inventory.layers.values(), key=lambda row: (row.driver, row.created, row.number)):
        if not only or row.id in only:
            children.setdefault(row.parent if row.parent in numbers else None, []).append(row)
    tops: dict[str, list[str]] = {}
    for image in inventory.images.values():
        if image.chain_ids:
            tops.setdefault(image.chain_ids[-1], []).extend(inventory.names[image.id] or [image.id[7:19]])
    owners = {c.number: c.name for c in inventory.containers.values()}
    # A stack, as images of more than a hundred layers are a chain as long.
    stack = [(row, 0, "", "") for row in reversed(children.get(None, []))]
    while stack:
        row, depth, before, drawn = stack.pop()
        yield Branch(row, depth, drawn, tuple(tops.get(row.chain_id or "", ())), owners.get(row.number, ""))
        below = children.get(row.number, [])
        for at, child in reversed(list(enumerate(below))):
            last = at == len(below) - 1
            stack.append((child, depth + 1, before + ("   " if last else "│  "), before + ("└─ " if last else "├─ ")))


def chains(inventory: Inventory, row: LayerRow) -> list[tuple[str, ...]]:
    """Every chain of references that ends in a layer; none if nothing keeps it. The first word is what a user can
    remove, each of the others is needed by the one before."""
    found: list[tuple[str, ...]] = []
    for kind, id_ in sorted(inventory.holders.get(("layer", row.id), ())):
        if kind == "image":
            image = inventory.images[id_]
            place = image.chain_ids.index(row.chain_id or "") + 1
            found += [
                (f"{said} {name}", f"image {id_[7:19]}", f"its layer {place} of {len(image.chain_ids)}")
                for said, name in [("name", n) for n in inventory.names[id_]] or [("no name,", "until a prune")]
            ]
        elif kind == "container":
            container = inventory.containers[id_]
            steps = [f"container {container.name} ({inventory.states[id_]})"]
            for below in inventory.chain_of(container.number):
                steps.append(f"layer {below.id[:12]}{'' if below.kind == 'committed' else ', its own'}")
                if below.id == row.id:
                    break
            found.append(tuple(steps))
        elif kind == "conversion":
            found.append(("the conversion of a container, until cowshed storage accept",))
        else:
            found.append((f"{id_}, which goes on or was killed",))
    return found
