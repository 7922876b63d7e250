"""All that is known of an image, in the shape that docker's users know."""

from __future__ import annotations

from cowshed.image.reference import familiar
from cowshed.state import images
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store


def document(store: Store, image: ImageRow) -> dict[str, Any]:
    """The document that `image inspect` prints; its keys are docker's."""
    config = loads(image.config)
    canonical, digests = images.names(store, image.id), images.digests(store, image.id)
    names = [familiar(name) for name in canonical]
    own = config.get("config") or {}
    held_in = drivers(store, image)
    return {
        "Id": image.id,
        "RepoTags": [name for name in names if "@" not in name],
        "RepoDigests": sorted(
            {f"{repository(familiar(n))}@{digests.get(n, image.manifest_digest)}" for n in canonical}
        ),
        "Parent": "",
        "Comment": last_comment(config),
        "Created": config.get("created") or "",
        "DockerVersion": config.get("docker_version") or "",
        "Author": config.get("author") or "",
        "Architecture": config.get("architecture") or "",
        "Variant": config.get("variant") or "",
        "Os": config.get("os") or "",
        "OsVersion": config.get("os.version") or "",
        "Size": image.size,
        "Config": {**_NOTHING, **{key: value for key, value in own.items() if value is not None}},
        "Descriptor": {
            "mediaType": image.media_type,
            "digest": image.manifest_digest,
            "size": len(image.manifest),
        },
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Layers": [
            {"MediaType": kind, "Digest": digest, "Size": size, "ChainID": chain}
            for (digest, kind, size), chain in zip(image.blobs, image.chain_ids, strict=True)
        ],
        "GraphDriver": {"Name": next(iter(held_in), ""), "Data": None},
        "Drivers": held_in,
        "Metadata": {"PulledTime": image.pulled},
    }


_NOTHING: dict[str, Any] = {
    "User": "", "Env": None, "Entrypoint": None, "Cmd": None, "Volumes": None, "WorkingDir": "", "Labels": None,
    "ExposedPorts": None, "StopSignal": "",
}  # fmt: skip


def repository(name: str) -> str:
    """A familiar name without its tag or digest."""
    name = name.partition("@")[0]
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail else name


def last_comment(config: dict[str, Any]) -> str:
    history = config.get("history") or [{}]
    return str(history[-1].get("comment") or "") if isinstance(history[-1], dict) else ""


def drivers(store: Store, image: ImageRow) -> list[str]:
    """The drivers that hold all layers of the image."""
    if not image.chain_ids:
        return []
    rows = store.query(
        "select driver from layers where chain_id = ? and kind = 'committed' order by driver", image.chain_ids[-1]
    )
    return [str(row[0]) for row in rows]
