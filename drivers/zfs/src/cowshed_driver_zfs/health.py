"""What the kernel says of the state that a pool is in (zpoolconcepts(7), Device Failure and Recovery)."""

from __future__ import annotations

from cowshed.storage.api import Reason, Verdict

FOLDER = "/proc/spl/kstat/zfs"


def reasons(pool: str) -> tuple[Reason, ...]:
    """Nothing of a pool that is online, nor where the module does not tell."""
    try:
        with open(f"{FOLDER}/{pool}/state", encoding="ascii", errors="replace") as file:
            state = file.read().strip()
    except OSError:
        return ()
    if state == "ONLINE":
        return ()
    verdict = Verdict.POOR if state == "DEGRADED" else Verdict.UNUSABLE
    text = f"pool {pool} is {state}"
    return (Reason("zfs.pool-state", text, f"zpool status {pool} tells why; zpool clear or zpool replace", verdict),)
