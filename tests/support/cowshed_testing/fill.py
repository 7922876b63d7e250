"""Fill a store quickly, to see how cost grows: images of many layers and containers that have ended, as rows and files.

    python -m cowshed_testing.fill ROOT RUNROOT [--layers 10000] [--containers 1000] [--depth 10]

The store must have an image and a container of it, made by the command: the first container is what the new ones are
copied from. What is written is sound: `cowshed system check` finds nothing, and each object can be removed by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING

from cowshed.image import manifest as manifests
from cowshed.image.resolve import describe
from cowshed.state import containers as container_rows
from cowshed.state import images
from cowshed.state import layers as rows
from cowshed.state.rows import ContainerRow, ImageRow
from cowshed.state.store import open_store
from cowshed_linux import process

if TYPE_CHECKING:
    from cowshed.state.store import Store, Transaction

CONTENT = {"overlay": ("upper", ("upper", "work")), "copy": ("root", ("root",))}  # of committed and active layers
_BATCH = 200


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def fill(root: str, run_root: str, *, layers: int = 10_000, containers: int = 1_000, depth: int = 10) -> None:
    """Add so many committed layers, in images of `depth` layers each, and so many containers."""
    store = open_store(root, run_root)
    try:
        template = _template(store)
        for first in range(0, layers, _BATCH * depth):
            with store.transaction() as tx:
                for at in range(first, min(first + _BATCH * depth, layers), depth):
                    _image(tx, store, template, at, min(depth, layers - at))
        for first in range(0, containers, _BATCH):
            with store.transaction() as tx:
                for n in range(first, min(first + _BATCH, containers)):
                    _container(tx, store, template, n)
    finally:
        store.close()


def _template(store: Store) -> ContainerRow:
    there = container_rows.list_all(store)
    if not there or there[-1].driver not in CONTENT:
        raise SystemExit(f"{store.root} has no container on {' or '.join(CONTENT)}: make one with `cowshed create`")
    return there[-1]


def _row(first: int, diffs: tuple[str, ...], blobs: list[tuple[str, str, int]]) -> ImageRow:
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}
    ).encode()
    described = [{"digest": digest, "mediaType": kind, "size": size} for digest, kind, size in blobs]
    about = {"mediaType": manifests.OCI_CONFIG, "digest": _digest(config), "size": len(config)}
    manifest = json.dumps({"schemaVersion": 2, "config": about, "layers": described}).encode()
    parsed = manifests.parse_manifest(manifests.document(manifest, "the manifest"))
    image = describe(manifest, manifests.OCI_MANIFEST, parsed, config)
    return ImageRow(
        image.id, image.manifest_digest, manifest, image.media_type, config, image.diff_ids, image.chain_ids,
        image.blobs, image.platform, image.size, first, first,
    )  # fmt: skip


def _image(tx: Transaction, store: Store, template: ContainerRow, first: int, depth: int) -> None:
    driver, boot, content = template.driver, process.boot_id(), CONTENT[template.driver][0]
    diffs = tuple(_digest(f"layer {n}".encode()) for n in range(first, first + depth))
    blobs = []
    for n in range(first, first + depth):
        data = f"blob {n}\n".encode()
        with open(f"{store.root}/blobs/sha256/{_digest(data)[7:]}", "wb") as blob:
            blob.write(data)
        blobs.append((_digest(data), "application/vnd.oci.image.layer.v1.tar", len(data)))
    image = _row(first, diffs, blobs)
    parent = None
    for n, (chain, diff) in enumerate(zip(image.chain_ids, diffs, strict=True)):
        number, id_ = rows.next_number(tx), _digest(f"id {first + n}".encode())[7:39]
        tree = f"{store.root}/drivers/{driver}/committed/{id_}/{content}"
        os.makedirs(tree)
        with open(f"{tree}/file-{first + n}", "w") as file:
            file.write(f"{n}\n")
        rows.insert_active(tx, number, id_, driver, parent, boot_id=boot, created=first + n)
        rows.set_committed(tx, number, driver=driver, chain_id=chain, diff_id=diff, data={}, durable=True)
        parent = number
    images.insert(tx, image)
    images.tag(tx, f"localhost/fill/{first}:latest", image.id)


def _container(tx: Transaction, store: Store, template: ContainerRow, n: int) -> None:
    number, id_, name = rows.next_number(tx), _digest(f"container {n}".encode())[7:], f"fill-{n}"
    parent = tx.execute("select parent from layers where number = ?", template.number)[0][0]
    active = f"{store.root}/drivers/{template.driver}/active/{id_[:32]}"
    for folder in CONTENT[template.driver][1]:
        os.makedirs(f"{active}/{folder}")
    source, target = f"{store.root}/containers/{template.id}", f"{store.root}/containers/{id_}"
    shutil.copytree(source, target)
    for file in ("config.json", "hostname", "hosts"):
        with open(f"{target}/{file}", "r+") as f:
            text = f.read().replace(template.id, id_).replace(template.id[:12], id_[:12])
            f.seek(0)
            f.write(text)
            f.truncate()
    rows.insert_active(
        tx, number, id_[:32], template.driver, parent, boot_id=process.boot_id(), created=template.created + n
    )
    at = template.created + n
    row = ContainerRow(
        number, id_, name, template.image_id, template.image_ref, template.driver, "exited", at,
        {**template.config, "name": name}, started=at, finished=at + 1, exit_code=n % 3,
    )  # fmt: skip
    container_rows.insert(tx, row)
    tx.record("containers", id_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("run_root")
    parser.add_argument("--layers", type=int, default=10_000)
    parser.add_argument("--containers", type=int, default=1_000)
    parser.add_argument("--depth", type=int, default=10)
    said = parser.parse_args()
    fill(said.root, said.run_root, layers=said.layers, containers=said.containers, depth=said.depth)


if __name__ == "__main__":
    main()
