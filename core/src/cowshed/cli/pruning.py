"""What the prune commands share: the question, the removal of containers and volumes, and what is told of it."""

from __future__ import annotations

import os
import sys

from cowshed import log
from cowshed.cli import output
from cowshed.container import lifecycle, listing, state
from cowshed.errors import BadUsage, Conflict, NotFound
from cowshed.filters import grouped
from cowshed.state import containers, volumes
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.space.inventory import Holder, Inventory
    from cowshed.space.policy import Policy
    from cowshed.state.rows import VolumeRow


def agreed(what: str) -> bool:
    """Whether the user, asked, says yes to a removal; nobody's answer is no."""
    return bool(asked(f"This will remove {what}."))


def asked(warning: str) -> bool | None:
    """Whether the user, asked, says yes; None if nobody answers."""
    sys.stdout.flush()
    sys.stderr.write(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes") if answer else None


def consented(warning: str) -> bool:
    """Whether the user, asked, says yes. BadUsage if nobody answers: a script is to say that it means it."""
    answer = asked(warning)
    if answer is None:
        raise BadUsage("nobody answers: nothing is done", remedy="add --force")
    return answer


def policy(said: Values) -> Policy:
    """What --keep-last and --max-size say. BadUsage."""
    from cowshed.space.policy import Policy

    if (said.keep_last or 0) < 0:
        raise BadUsage(f"--keep-last is how many stay, not {said.keep_last}")
    return Policy(said.keep_last, said.max_size)


def planned(told: Mapping[str, list[str]], size: int, *, exact: bool, said: Values) -> bool:
    """Show what would be removed, and ask. False if nothing is to be done: there is nothing, it was to be shown only,
    or the user says no. What was forced is not shown twice."""
    dry = bool(said.dry_run)
    if not any(told.values()):
        print("There is nothing to remove" if dry else "Total reclaimed space: 0B")
        return False
    if said.force and not dry:
        return True
    out = sys.stdout if dry else sys.stderr
    for title, lines in told.items():
        if lines:
            print(f"Would delete {title}:", *lines, "", sep="\n", file=out)
    print(f"Would reclaim {'' if exact else 'about '}{output.size(size)}", file=out)
    return not dry and agreed("what is listed above")


def by_policy(
    engine: Engine, said: Values, kind: str, candidates: Callable[[Inventory, Policy], list[Holder]]
) -> list[str] | None:
    """Ids of what a pruning with a policy may take, when it has been shown and agreed to; None if nothing is to be
    done. kind: image or container."""
    from cowshed.space import policy as policies
    from cowshed.space.account import total
    from cowshed.space.inventory import Inventory

    wanted = policy(said)
    inventory = Inventory(engine).measure()
    taken = total(policies.taken_by(inventory, kind))
    chosen = policies.until_small(inventory, candidates(inventory, wanted), taken, wanted.most)
    freed = inventory.freed_by(chosen)
    told = {f"{kind.capitalize()}s": [inventory.said(holder).partition(" ")[2] for holder in chosen]}
    exact = all(unit.exact for unit in freed)
    return [id_ for _, id_ in chosen] if planned(told, total(freed), exact=exact, said=said) else None


def fitting(engine: Engine, filters: list[str]) -> listing.Test:
    return listing.fitting(engine, grouped(filters, listing.PRUNE_FILTERS), moment=output.moment)


def remove_containers(engine: Engine, fits: listing.Test) -> tuple[list[str], int]:
    """Remove the containers that do not run and fit: their ids, and the bytes that came back."""
    engine.freeing = True
    removed, freed = [], 0
    for row in containers.list_all(engine.store):
        now = state.now(engine, row)
        if now.state not in ("created", "exited") or not fits(row, now):
            continue
        try:
            size = own_size(engine, row.driver, row.number)
            lifecycle.remove(engine, row, force=False, with_volumes=False)
        except (Conflict, NotFound):
            continue  # started or removed meanwhile
        except StorageError as error:
            log.warn(f"container {row.name} stays: {error}")
            continue
        removed.append(row.id)
        freed += size
    return removed, freed


def own_size(engine: Engine, driver: str, number: int) -> int:
    """The bytes that a container has written into its root."""
    layers = engine.layers(driver)
    return layers.usage(layers.load(number)).own


def remove_volumes(engine: Engine, fits: Callable[[VolumeRow], bool]) -> tuple[list[str], int]:
    """Remove the volumes that no container has and that fit: their names, and the bytes that came back."""
    from cowshed.storage.kit.trees import measure_tree

    engine.freeing = True
    removed, freed = [], 0
    for row in volumes.list_all(engine.store):
        if not fits(row):
            continue
        path = f"{engine.store.root}/volumes/{row.name}"
        size = measure_tree(path)[0] if os.path.isdir(path) else 0
        with engine.store.transaction() as tx:
            if tx.execute("select 1 from volume_users where volume = ?", row.name):
                continue
            volumes.delete(tx, row.name)
        removed.append(row.name)
        freed += size
    lifecycle.remove_loose_volumes(engine)
    return removed, freed


def tell(what: str, removed: list[str]) -> None:
    if removed:
        print(f"Deleted {what}:", *removed, "", sep="\n")


def tell_freed(freed: int) -> None:
    print(f"Total reclaimed space: {output.size(freed)}")
