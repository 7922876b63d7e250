"""A layer sent by one driver and received by another that knows the same format."""

from __future__ import annotations

import os
from threading import Thread

from cowshed.storage.api import Durability
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage import api


def send(
    source: api.TransferDriver, layer: api.Layer, base: api.Layer | None,
    target: api.TransferDriver, new: api.Layer, fmt: str,
) -> api.DriverData:  # fmt: skip
    """Send layer, as what it changed of base, and receive it as new, on new's parent. StorageError, OSError: of the
    sender, if both have one."""
    reader, writer = os.pipe()
    problems: list[BaseException] = []
    data: api.DriverData = {}

    def pump() -> None:
        try:
            with open(writer, "wb") as out:
                source.send(layer, base, fmt, out)
        except BrokenPipeError:
            return  # the receiver has its own say on why
        except (StorageError, OSError) as error:
            problems.append(error)

    thread = Thread(target=pump, name="send")
    thread.start()
    try:
        with open(reader, "rb") as pipe:
            data = target.receive(new, new.parent, fmt, pipe, Durability.COMMIT)
    except (StorageError, OSError) as error:
        problems.append(error)
    finally:
        thread.join()
    if problems:
        raise problems[0]
    return data
