"""What only the database says, a second time: small files beside it, from which it can be made again.

    records/store            the store's identity
    records/drivers/NAME     the identity and the fixed options of a driver's store
    records/images/HEX       manifest, configuration and names of an image, with the digests that they stood for, and
                             where it came from
    records/layers/ID        driver, number, parent, chain id and diff id of an image's layer
    records/lists/HEX        name and document of an index that `manifest create` began; HEX is the sha256 of the name
    containers/ID/record     what a container was made of and asked for, and its layer (`cowshed.state.containers`)

They follow the database: written again, by whoever has changed a row, when its transaction is durable, and never read
by a command that has a database. What a killed command did not come to is done by the next one that writes: a note in
the run directory says it (`unrecorded-PID-…`). A record whose row goes is deleted before that is durable: one without
a row means a row that was lost. They are not synced, but for those of what `storage convert` has switched and `storage
accept` relies on. One that a power cut took is missing or old: `storage check` holds them against the database, and
`storage repair` writes them again.
"""

from __future__ import annotations

import os
from binascii import a2b_base64, b2a_base64

from cowshed import log
from cowshed.errors import StoreError
from cowshed.state.store import UNRECORDED
from cowshed_linux import files
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store

KINDS = ("drivers", "images", "layers", "lists")
_WAIT = 5.0  # seconds for another command that writes records


def folder(root: str) -> str:
    return f"{root}/records"


def announce(store: Store, changed: set[tuple[str, str]]) -> str:
    """Note, in a file that is named, that the records of these (kind, name) are about to be old, and delete those that
    the transaction which is about to be committed leaves no row of. What cannot be done now is left to `refresh`."""
    listed = sorted(changed)
    note = f"{store.run_directory()}/{UNRECORDED}{os.getpid()}-{id(changed):x}"
    try:
        files.write_atomically(note, dumps(listed).encode(), durable=False)
        for kind, name in listed:
            if kind != "containers" and wanted(store, kind, name) is None:
                _unlink(path(store.root, kind, name))
    except OSError as error:
        log.info(f"records that are about to be old cannot be noted: {error}")
    return note


def recover(store: Store) -> None:
    """Write the records that commands which died did not come to."""
    for name in store.unrecorded():
        if os.path.exists(f"/proc/{name.split('-')[1]}"):
            continue  # it lives, or another one that has its number by now does
        try:
            with open(f"{store.run}/{name}", "rb") as file:
                noted = loads(file.read())
        except FileNotFoundError:
            continue  # another command was faster
        except ValueError:
            noted = []  # killed while it wrote that: its transaction was not made durable
        refresh(store, [(kind, each) for kind, each in noted], f"{store.run}/{name}")


def refresh(store: Store, changed: Iterable[tuple[str, str]], note: str = "") -> None:
    """Write the records of these (kind, name) as the database has them now, delete those of what it has no more, and
    the note of `announce`.

    One that cannot be written, or not now, is told and left to `storage repair`."""
    if not store.locks.exclude("records", wait=_WAIT):
        log.warn("records are being written by another command for long: cowshed storage repair writes these")
        return
    try:
        for kind in ("", *KINDS):
            os.makedirs(f"{folder(store.root)}/{kind}", mode=0o700, exist_ok=True)
        _write(f"{folder(store.root)}/store", {"store": store.id})
        for kind, name in sorted(changed):
            value = wanted(store, kind, name)
            if value is not None:
                _write(path(store.root, kind, name), value)
            elif kind != "containers":  # of which one goes with its directory
                _unlink(path(store.root, kind, name))
        if note:
            _unlink(note)
    except OSError as error:
        log.warn(f"records cannot be written: {error}: cowshed storage repair writes them")
    finally:
        store.locks.let_go("records")


def make_durable(store: Store, names: Iterable[tuple[str, str]]) -> None:
    """Write the records of these (kind, name) where they are not what the database wants, and sync them: before what
    they would be needed to find again is the only copy. Busy, StoreError."""
    listed = sorted(set(names))
    fd = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # before: syncfs tells errors only since then
    try:
        refresh(store, listed)
        for kind, name in listed:
            value = wanted(store, kind, name)
            if value is not None and _bytes(path(store.root, kind, name)) != dumps(value).encode():
                raise StoreError(f"the record {path(store.root, kind, name)} cannot be written", remedy="try again")
        files.syncfs(fd)
    except OSError as error:
        raise StoreError(f"the records of {store.root} cannot be made durable: {error}", remedy="try again") from None
    finally:
        os.close(fd)


def path(root: str, kind: str, name: str) -> str:
    if kind == "containers":
        return f"{root}/containers/{name}/record"
    if kind == "lists":
        return f"{folder(root)}/lists/{file_of_list(name) if '/' in name else name}"  # of a name, or as it lies there
    return f"{folder(root)}/{kind}/{name.removeprefix('sha256:')}"


def file_of_list(name: str) -> str:
    """What the record of a list is called: the name may be longer than that of a file, and has slashes."""
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()


def _write(target: str, value: dict[str, Any]) -> None:
    """One that says so already is not written."""
    data = dumps(value).encode()
    if _bytes(target) != data:
        files.write_atomically(target, data, durable=False)


def _bytes(target: str) -> bytes | None:
    try:
        with open(target, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _unlink(target: str) -> None:
    try:
        os.unlink(target)
    except FileNotFoundError:
        return


def read(target: str) -> dict[str, Any] | None:
    """A record; None if there is none or it is damaged."""
    try:
        data = _bytes(target)
        value = loads(data) if data else None
    except (ValueError, IsADirectoryError):
        return None
    return value if isinstance(value, dict) else None


def there(root: str, kind: str) -> list[str]:
    """The names of the records of a kind that are there."""
    try:
        return sorted(name for name in os.listdir(f"{folder(root)}/{kind}") if not name.endswith(".new"))
    except FileNotFoundError:
        return []


def wanted(store: Store, kind: str, name: str) -> dict[str, Any] | None:
    """What the record is to say; None if there is to be none."""
    from cowshed.state import drivers, images, layers, lists, origins

    if kind == "lists":
        document = lists.get(store, name)
        return None if document is None else {"name": name, "document": document}
    if kind == "drivers":
        driver = drivers.get(store, name)
        return None if driver is None else {"store": driver.store, "options": driver.options}
    if kind == "containers":
        return _of_container(store, name)
    if kind == "images":
        image = images.exact(store, name)
        if image is None:
            return None
        known = origins.as_record(origins.of(store, image.id))
        return of_image(image, images.names(store, image.id), images.digests(store, image.id), known)
    row = layers.by_id(store, name)
    if row is None or row.diff_id is None or row.kind != "committed":
        return None
    below = layers.get(store, row.parent) if row.parent is not None else None
    return {
        "driver": row.driver, "number": row.number, "parent": below.id if below is not None else None,
        "chain_id": row.chain_id, "diff_id": row.diff_id, "created": row.created, "data": row.data,
    }  # fmt: skip


def _of_container(store: Store, id_: str) -> dict[str, Any] | None:
    from cowshed.state import containers, layers

    row = containers.exact(store, id_)
    chain = layers.chain(store, row.number) if row is not None else []
    if row is None or not chain or not os.path.isdir(f"{store.root}/containers/{id_}"):
        return None
    return containers.record_of(row, chain[0][1], chain[1][1] if len(chain) > 1 else None)


def all_wanted(store: Store) -> list[tuple[str, str]]:
    """(kind, name) of every record that is to be there."""
    queries = {
        "drivers": "select name from drivers",
        "images": "select id from images",
        "layers": "select id from layers where kind = 'committed' and diff_id is not null",
        "lists": "select name from lists",
    }
    return [(kind, row[0]) for kind, sql in queries.items() for row in store.query(f"{sql} order by 1")]


def of_image(image: ImageRow, names: list[str], digests: dict[str, str], origins: list[list[Any]]) -> dict[str, Any]:
    return {
        "manifest": _text(image.manifest), "config": _text(image.config), "media_type": image.media_type,
        "names": names, "pulled": image.pulled, **({"digests": digests} if digests else {}),
        **({"origins": origins} if origins else {}),
    }  # fmt: skip


def _text(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()


def bytes_of(text: object) -> bytes:
    """What `of_image` made a text of. ValueError if it is damaged."""
    return a2b_base64(str(text).encode(), strict_mode=True)
