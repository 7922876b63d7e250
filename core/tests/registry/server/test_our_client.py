"""Our client and our registry: everything that one asks and the other can, also through a network that breaks."""

import contextlib
import hashlib
import json
import os
import random
import socket
import threading

import pytest

from cowshed.image.manifest import Descriptor
from cowshed.registry.client import Client
from cowshed.registry.place import Missing
from cowshed.registry.repository import DELETE, PUSH, Repository, catalog

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DATA = os.urandom(2_500_000)
BLOB = Descriptor("sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA), "")


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Breaking:
    """A way to a server that ends a share of the connections after a random number of bytes of either side."""

    def __init__(self, address, share, seed):
        host, _, port = address.partition(":")
        self._to, self._share, self._chance = (host, int(port)), share, random.Random(seed)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.cut = 0
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._threads[0].join()
        for thread in self._threads[1:]:
            thread.join()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                left = [self._chance.randrange(600_000)] if self._chance.random() < self._share else [1 << 60]
                far = socket.create_connection(self._to)
                pair = [threading.Thread(target=self._pump, args=(*ends, left)) for ends in ((near, far), (far, near))]
                self._threads += pair
                for thread in pair:
                    thread.start()
                self._threads.append(threading.Thread(target=self._close, args=(near, far, pair)))
                self._threads[-1].start()

    def _pump(self, source, target, left):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data[: max(left[0], 0)])
                left[0] -= len(data)
                if left[0] <= 0:
                    self.cut += 1
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _close(self, near, far, pair):
        for thread in pair:
            thread.join()
        near.close()
        far.close()


def there(address, name="a/b", **options):
    return Repository(address, name, {}, actions=PUSH, pause=0.01, **options)


def source(at):
    return (DATA[n : n + 100_000] for n in range(at, len(DATA), 100_000))


@pytest.mark.parametrize("piece", [64 << 20, 1 << 20])
def test_blobs(served, piece, tmp_path):
    (tmp_path / "blob").write_bytes(DATA)
    with there(served.address, whole=piece, piece=piece) as it:
        assert it.send(BLOB, str(tmp_path / "blob")) == "sent"
        assert it.send(BLOB, source) == "there"
        other = Descriptor("sha512:" + hashlib.sha512(DATA).hexdigest(), len(DATA), "")
        assert it.send(other, source) == "sent"
    with there(served.address, "c/d") as it:
        assert it.send(BLOB, source, mount=["nothing", "a/b"]) == "mounted"
    with Client(served.address, "c/d", {}) as it:
        assert b"".join(it.blob(BLOB)) == DATA
        divisible, pieces = it.part(BLOB, 1000, 2_000_000)
        assert divisible
        assert b"".join(pieces) == DATA[1000:2_000_000]


def test_manifests_tags_referrers_and_deletion(served):
    config = b"{}"
    blob = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(config), "size": 2}
    image = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": blob, "layers": [blob]}).encode()
    with Repository(served.address, "a/b", {}, actions=DELETE, pause=0.01) as it:
        it.send(Descriptor(digest(config), 2, ""), lambda at: (config[at:],))
        named = it.put_manifest(image, MANIFEST, tag="1", more_tags=["1.2", "latest"])
        assert list(it.tags()) == ["1", "1.2", "latest"]
        subject = {"mediaType": MANIFEST, "digest": named, "size": len(image)}
        for kind in ("x/sig", "x/sbom"):
            value = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": blob, "layers": [blob],
                     "subject": subject}  # fmt: skip
            it.put_manifest(json.dumps(value).encode(), MANIFEST)
        assert len(it.referrers(named)) == 2
        (found,) = it.referrers(named, "x/sbom")
        assert found["artifactType"] == "x/sbom"
        assert list(it.tags()) == ["1", "1.2", "latest"], "no fallback tag where there is an API"
        it.delete_tag("1")
        assert list(it.tags()) == ["1.2", "latest"]
        it.delete_manifest(found["digest"])
        assert len(it.referrers(named)) == 1
        it.delete_manifest(named)
        assert list(it.tags()) == []
        with pytest.raises(Missing):
            it.manifest(named)
    assert list(catalog(served.address, {})) == ["a/b"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("piece", [64 << 20, 500_000])
def test_through_a_network_that_breaks(served, seed, piece):
    with Breaking(served.address, 0.3, seed) as way:
        for n in range(4):
            with there(way.address, f"a/{n}", whole=piece, piece=piece) as it:
                assert it.send(BLOB, source, look=False) == "sent"
            with Client(way.address, f"a/{n}", {}, pause=0.01) as it:
                assert b"".join(it.blob(BLOB)) == DATA
        assert way.cut > 0
