"""Small OCI images, made from what Debian installs: layers as lists of members, and images as lists of layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
BUSYBOX = "/bin/busybox"
APPLETS = (
    "sh cat ls echo true false sleep mkdir rm cp mv ln chmod chown touch head tail wc grep sed seq dd stat id env pwd "
    "hostname mount umount df du ps kill sort uniq tr cut find xargs test date md5sum sha256sum tee yes stty tty nc ip "
    "readlink mknod mkfifo basename dirname uname whoami ulimit nproc free top"
).split()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class LayerTar:
    """Builds one layer's archive; every method returns self, so that a layer reads as one expression."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)

    def _add(self, name: str, kind: bytes, mode: int, data: bytes = b"", **fields: object) -> LayerTar:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.size, member.mtime = kind, mode, len(data), 1_700_000_000
        for key, value in fields.items():
            setattr(member, key, value)
        self._tar.addfile(member, io.BytesIO(data))
        return self

    def dir(self, name: str, mode: int = 0o755, **fields: object) -> LayerTar:
        return self._add(name, tarfile.DIRTYPE, mode, **fields)

    def file(self, name: str, data: bytes | str = b"", mode: int = 0o644, **fields: object) -> LayerTar:
        return self._add(name, tarfile.REGTYPE, mode, data.encode() if isinstance(data, str) else data, **fields)

    def symlink(self, name: str, target: str) -> LayerTar:
        return self._add(name, tarfile.SYMTYPE, 0o777, linkname=target)

    def hardlink(self, name: str, target: str) -> LayerTar:
        return self._add(name, tarfile.LNKTYPE, 0o644, linkname=target)

    def whiteout(self, name: str) -> LayerTar:
        folder, _, base = name.rpartition("/")
        return self.file(f"{folder}/.wh.{base}" if folder else f".wh.{base}")

    def opaque(self, folder: str) -> LayerTar:
        return self.file(f"{folder}/.wh..wh..opq")

    def bytes(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def busybox_layer() -> bytes:
    """A root file system with a static busybox, its applets as links, and the files that a shell expects."""
    layer = LayerTar()
    for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var", "var/tmp", "home"):
        layer.dir(folder, 0o1777 if folder.endswith("tmp") else 0o755)
    with open(BUSYBOX, "rb") as binary:
        layer.file("bin/busybox", binary.read(), 0o755)
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/home:/bin/sh\nnobody:x:65534:65534::/:\n")
    layer.file("etc/group", "root:x:0:\nwww:x:33:\nstaff:x:50:www\nnogroup:x:65534:\n")
    return layer.bytes()


class Image:
    """An OCI image in memory: config, manifest and compressed layers, all as blobs by digest."""

    def __init__(
        self, layers: list[bytes], config: dict[str, object] | None = None, *, compression: str = "gzip"
    ) -> None:
        self.blobs: dict[str, bytes] = {}
        described = []
        for layer in layers:
            packed = _pack(layer, compression)
            self.blobs[digest(packed)] = packed
            kind = "application/vnd.oci.image.layer.v1.tar" + (f"+{compression}" if compression else "")
            described.append({"mediaType": kind, "digest": digest(packed), "size": len(packed)})
        document = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["sh"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
        }
        config_bytes = json.dumps(document).encode()
        self.id = digest(config_bytes)
        self.blobs[self.id] = config_bytes
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": self.id,
                    "size": len(config_bytes),
                },
                "layers": described,
            }
        ).encode()
        self.digest = digest(self.manifest)

    def write_layout(self, folder: str, name: str) -> None:
        """As an OCI image layout directory (image-spec, image-layout.md)."""
        os.makedirs(f"{folder}/blobs/sha256")
        for key, data in {**self.blobs, self.digest: self.manifest}.items():
            with open(f"{folder}/blobs/sha256/{key[7:]}", "wb") as blob:
                blob.write(data)
        with open(f"{folder}/oci-layout", "w") as marker:
            marker.write('{"imageLayoutVersion": "1.0.0"}')
        described = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.digest,
            "size": len(self.manifest),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        with open(f"{folder}/index.json", "w") as index:
            json.dump({"schemaVersion": 2, "manifests": [described]}, index)


def docker_archive(
    image: Image, names: list[str], *, links: bool = False, rename: Callable[[str], str] = lambda name: name
) -> bytes:
    """As docker save wrote them: configuration, a folder with layer.tar for each layer, manifest.json."""
    packed = [image.blobs[entry["digest"]] for entry in json.loads(image.manifest)["layers"]]
    layers = [gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data for data in packed]
    files: dict[str, bytes | str] = {f"{image.id[7:]}.json": image.blobs[image.id]}
    listed: list[str] = []
    first: dict[bytes, str] = {}
    for n, layer in enumerate(layers):
        name = f"{n:02d}/layer.tar"
        listed.append(name)
        files[name] = layer
        if links and layer in first:
            files[name] = f"../{first[layer]}"
        first.setdefault(layer, name)
    files["manifest.json"] = json.dumps(
        [{"Config": f"{image.id[7:]}.json", "RepoTags": names, "Layers": listed}]
    ).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(rename(name))
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _pack(layer: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(layer, 1, mtime=0)
    if compression == "zstd":
        from backports import zstd

        packed: bytes = zstd.compress(layer)
        return packed
    return layer
