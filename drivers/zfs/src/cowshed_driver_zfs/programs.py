"""Channel programs (zfs-program(8)): what is asked of ZFS in one call and of one moment, and how the answers read.

An answer is lines of words parted by tabs, which no name of a dataset and no value that we set holds.
"""

from __future__ import annotations

from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = "-"  # a property that is not set

# The properties of a dataset or snapshot, one a line; nothing if it is not there.
PROPERTIES = """
local arguments = ...
local function get(name, property)
  local value = zfs.get_prop(name, property)
  if value == nil then return "-" end
  return tostring(value)
end
local name = arguments["name"]
if not zfs.exists(name) then return "" end
local found = {}
for property in string.gmatch(arguments["properties"], "[^ ]+") do
  found[#found + 1] = get(name, property)
end
return table.concat(found, "\\n")
"""

# Each dataset of a store, and its snapshots with their clones. What is kept with a committed layer is kept with its
# snapshot. The kernel opens a dataset for each property that it is asked for, and once for all of those of users.
OBJECTS = """
local arguments = ...
local function identity(name)
  local number, parent = "-", "-"
  for property, value in zfs.list.properties(name) do
    if property == "cowshed:number" then number = value end
    if property == "cowshed:parent" then parent = value end
  end
  return number, parent
end
local store = arguments["store"]
local found = {}
if not zfs.exists(store) then return "" end
for name in zfs.list.children(store) do
  local layer, snapshots = name, {}
  for snapshot in zfs.list.snapshots(name) do
    local short, clones = string.sub(snapshot, #name + 2), {}
    if short == "c" then layer = snapshot end
    for clone in zfs.list.clones(snapshot) do clones[#clones + 1] = "\\t" .. clone end
    snapshots[#snapshots + 1] = "\\nS\\t" .. short .. table.concat(clones)
  end
  local number, parent = identity(layer)
  local words = string.sub(name, #store + 2) .. "\\t" .. number .. "\\t" .. parent
  found[#found + 1] = "D\\t" .. words .. table.concat(snapshots)
end
return table.concat(found, "\\n")
"""


@record(slots=True)
class Object:
    """A dataset of a store."""

    name: str  # below the store's own
    number: int | None  # None: its maker did not come to the end
    parent: str | None
    snapshots: dict[str, list[str]]  # by name after the @: its clones, by their names below the store's; see relative()


def properties(answer: str, names: Sequence[str]) -> dict[str, str] | None:
    """The answer of PROPERTIES by name; None for nothing there."""
    if not answer:
        return None
    return dict(zip(names, answer.split("\n"), strict=True))


def objects(answer: str, store: str) -> list[Object]:
    """The answer of OBJECTS, sorted by name."""
    found: list[Object] = []
    for line in answer.splitlines():
        kind, name, *words = line.split("\t")
        if kind == "S":
            found[-1].snapshots[name] = [relative(each, store) for each in words]
            continue
        number, parent = words
        found.append(_object(name, number, parent))
    return sorted(found, key=lambda it: it.name)


def listed(output: str, store: str) -> list[Object]:
    """The same of `zfs list -Hp -d 2 -o name,cowshed:number,cowshed:parent,clones`."""
    found: dict[str, Object] = {}
    for line in output.splitlines():
        full, number, parent, clones = line.split("\t")
        name, _, snapshot = full[len(store) + 1 :].partition("@")
        if not name or "/" in name:
            continue  # the store's own dataset, and what is not ours
        if not snapshot:
            found[name] = _object(name, number, parent)
            continue
        if snapshot == "c":
            found[name] = _object(name, number, parent, found[name].snapshots)
        below = [relative(each, store) for each in clones.split(",") if each not in ("", NOTHING)]
        found[name].snapshots[snapshot] = below
    return sorted(found.values(), key=lambda it: it.name)


def relative(full: str, store: str) -> str:
    """The name of a clone as Object has it: a stranger may have made one elsewhere in the pool, or below one of ours,
    and has a / before its whole name."""
    name = full.removeprefix(f"{store}/")
    return name if name != full and "/" not in name else f"/{full}"


def _object(name: str, number: str, parent: str, snapshots: dict[str, list[str]] | None = None) -> Object:
    known = number.isdigit()
    above = parent if known and parent not in ("none", NOTHING) else None
    return Object(name, int(number) if known else None, above, {} if snapshots is None else snapshots)
