"""The proof that a layer is mounted nowhere, which the engine owes its drivers before commit and remove (rule E2).

The kernel neither refuses nor notices the removal of a layer that runs in another mount namespace. So: nobody holds the
layer's `mounts` byte (monitors hold it for life, whoever mounts for a moment holds it meanwhile), and no mount
namespace shows the layer, which finds the container of a monitor that was killed.
"""

from __future__ import annotations

import os

from cowshed.errors import Busy
from cowshed.storage.errors import InUse, LayerId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.state.store import Store


_PATIENCE = 2.0  # seconds for a monitor that is just ending, or a command that looks into the layer


def prove(store: Store, number: int, layer: str) -> None:
    """Take the layer's `mounts` byte, which the caller releases, and look into every mount namespace. InUse names the
    holder."""
    try:
        store.locks.take("mounts", number, wait=_PATIENCE)
    except Busy:
        text = f"layer {layer[:12]} is mounted by a running command or container"
        raise InUse(text, layer=LayerId(layer)) from None
    holder = shown_to(layer)
    if holder:
        store.locks.release("mounts", number)
        raise InUse(
            f"layer {layer[:12]} is still mounted in the namespace of process {holder}",
            holders=[str(holder)],
            layer=LayerId(layer),
            remedy=f"end process {holder}",
        )


def shown_to(layer: str) -> int:
    """The pid of a process whose mount table names the layer; 0 if there is none. Each namespace is read once."""
    mark = layer.encode()
    seen: set[str] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{entry}/ns/mnt")
            if namespace in seen:
                continue
            fd = os.open(f"/proc/{entry}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or a kernel thread
        try:
            rest = b""
            while block := os.read(fd, 1 << 16):
                if mark in rest + block:
                    return int(entry)
                rest = block[-len(mark) :]
            seen.add(namespace)
        except OSError:
            continue  # a zombie has no mount table
        finally:
            os.close(fd)
    return 0
