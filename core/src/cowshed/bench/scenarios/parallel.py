"""Several processes of this one at the same work."""

from __future__ import annotations

import os
import time
import traceback

from cowshed.bench.scenario import Wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def at_once(works: Sequence[Callable[[], None]]) -> list[float]:
    """Do all in a process each, beginning together; the seconds that each took. Wrong if one fails."""
    running = []
    ready, go = os.pipe()
    for work in works:
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(go)
                os.close(told)
                os.read(ready, 1)  # until the other end is closed
                began = time.perf_counter()
                work()
                os.write(tell, b"%r" % (time.perf_counter() - began))
                status = 0
            except BaseException:
                os.write(tell, traceback.format_exc().strip().splitlines()[-1].encode(errors="replace")[:500])
            finally:
                os._exit(status)
        os.close(tell)
        running.append((pid, told))
    os.close(ready)
    os.close(go)
    took, failed = [], []
    for pid, told in running:
        said = os.read(told, 4096).decode(errors="replace")
        os.close(told)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            failed.append(said or "killed")
        else:
            took.append(float(said))
    if failed:
        raise Wrong(f"{len(failed)} of {len(works)} processes failed: {failed[0]}")
    return took
