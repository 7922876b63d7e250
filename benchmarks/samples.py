"""The images that are pulled, pushed to a registry that lacks them: contents are the same in every run."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import random
import tarfile

from cowshed_testing.images import Image, LayerTar, busybox_layer

DEEP = 500
_BIG = 268 << 20


def busybox() -> bytes:
    return busybox_layer()


def layered() -> list[bytes]:
    """Busybox and eleven layers of 1 MB, each hiding something of the one below."""
    numbers = random.Random(1)
    layers = [busybox()]
    for n in range(1, 12):
        layer = LayerTar().dir("data")
        if n > 1:
            layer.whiteout(f"data/{n - 1}/3").opaque(f"data/{n - 1}/sub")
        layer.dir(f"data/{n}").dir(f"data/{n}/sub").file(f"data/{n}/sub/below", "below\n")
        for i in range(15):
            layer.file(f"data/{n}/{i}", numbers.randbytes(65536))
        layers.append(layer.hardlink(f"data/{n}/hard", f"data/{n}/1").bytes())
    return layers


def many() -> list[bytes]:
    """Busybox and 30,000 small files in three layers."""
    numbers = random.Random(2)
    words = [bytes(numbers.choices(b"abcdefghijklmnopqrstuvwxyz", k=numbers.randint(2, 9))) for _ in range(2000)]
    layers = [busybox()]
    for n in range(3):
        layer = LayerTar().dir("many").dir(f"many/{n}")
        for d in range(100):
            layer.dir(f"many/{n}/{d}")
            for i in range(100):
                layer.file(f"many/{n}/{d}/{i}", b" ".join(numbers.choices(words, k=numbers.randint(10, 500))))
        layers.append(layer.bytes())
    return layers


def big() -> bytes:
    """One layer of 268 MB that compresses to about 100: busybox, and files of this host's /usr in order of name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(busybox())) as base, tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in base:
            tar.addfile(member, base.extractfile(member) if member.isreg() else None)
        for folder, folders, names in os.walk("/usr"):
            folders.sort()
            for name in sorted(names):
                path = f"{folder}/{name}"
                if os.path.isfile(path) and not os.path.islink(path):
                    tar.add(path, f"data{path}")
            if buffer.tell() > _BIG:
                break
    return buffer.getvalue()


def deep() -> list[bytes]:
    """As many layers as a chain may have, each with a file of its own."""
    return [busybox(), *[LayerTar().dir("srv").file(f"srv/{n}", f"{n}\n").bytes() for n in range(1, DEEP)]]


def make(name: str) -> Image:
    if name == "small":
        return Image([busybox()])
    if name == "layers":
        return Image(layered())
    if name == "many":
        return Image(many())
    if name == "deep":
        return Image(deep())
    return Image([big()], compression="zstd" if name == "big-zstd" else "gzip")


def fetch(address: str, path: str, **headers: str) -> bytes | None:
    """The body of a resource of the registry, None if it has none."""
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        return body if answer.status == 200 else None
    finally:
        connection.close()


def manifest(address: str, name: str) -> dict[str, object] | None:
    body = fetch(address, f"/v2/bench/{name}/manifests/latest", Accept="application/vnd.oci.image.manifest.v1+json")
    return None if body is None else json.loads(body)


def archive(address: str, name: str, path: str) -> None:
    """Write an image of the registry as a docker archive, its layers unpacked, as `save` of other engines does."""
    described = manifest(address, name)
    if described is None:
        raise LookupError(f"bench/{name} is not on {address}")
    config = fetch(address, f"/v2/bench/{name}/blobs/{described['config']['digest']}")
    with tarfile.open(path, "w") as tar:

        def add(member: str, data: bytes) -> None:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        layers = []
        for layer in described["layers"]:
            layers.append(f"{layer['digest'][7:]}/layer.tar")
            add(layers[-1], gzip.decompress(fetch(address, f"/v2/bench/{name}/blobs/{layer['digest']}")))
        add(f"{described['config']['digest'][7:]}.json", config)
        index = [
            {
                "Config": f"{described['config']['digest'][7:]}.json",
                "RepoTags": [f"localhost/bench/{name}:latest"],
                "Layers": layers,
            }
        ]
        add("manifest.json", json.dumps(index).encode())
