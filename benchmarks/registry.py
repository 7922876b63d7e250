#!/usr/bin/env python3
"""Cowshed's registry beside Debian's docker-registry: requests and bytes per second, CPU seconds of the server, memory.

Both serve an empty directory of the same file system on loopback; the order changes from round to round, and what is
printed is the median of the rounds. The CPU seconds are those of the server alone (proc(5)), so that they say something
on a busy machine as well. Clients are forked processes that speak HTTP on bare sockets.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{HERE}/tests/support")

from cowshed_testing.registry import CONFIG, Remote, free_port  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Server:
    """A process that serves a registry. `cpu` and `memory` are of it alone."""

    def __init__(self, folder, cleans):
        os.makedirs(folder)
        self.folder, self.address = folder, f"127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(self.words(), stdin=subprocess.DEVNULL, stdout=cleans, stderr=cleans)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                Remote(self.address)._request("GET", "/v2/")
                return
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"{self.words()[0]} does not start")

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self):
        """MB that it has for itself and its share of what others have as well (Pss)."""
        with open(f"/proc/{self.process.pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        shutil.rmtree(self.folder)


class Cowshed(Server):
    name = "cowshed"

    def words(self):
        return [f"{HERE}/.venv/bin/cowshed", "registry", "serve", f"{self.folder}/data", "--listen", self.address,
                "--log", f"{self.folder}/log"]  # fmt: skip


class Docker(Server):
    name = "docker-registry"

    def words(self):
        with open(f"{self.folder}/config", "w") as file:
            file.write(
                CONFIG.format(root=f"{self.folder}/data", address=self.address).replace(
                    "disabled: true", "disabled: false"
                )
            )
        return ["docker-registry", "serve", f"{self.folder}/config"]


class Wire:
    """HTTP on a bare socket: what a client costs is not to be measured."""

    def __init__(self, address):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.file = self.socket.makefile("rb")
        self.buffer = bytearray(1 << 20)

    def __call__(self, method, path, body=b"", kind="application/octet-stream"):
        """(status, headers, bytes of the body)"""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {MANIFEST}\r\nContent-Type: {kind}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode())
        if body:
            self.socket.sendall(body)
        status = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().rstrip():
            key, _, value = line.decode().partition(": ")
            headers[key.lower()] = value
        left = int(headers.get("content-length", 0)) if method != "HEAD" else 0
        total = left
        while left:
            left -= self.file.readinto(memoryview(self.buffer)[: min(left, len(self.buffer))])
        return status, headers, total

    def push(self, data, name="bench/a"):
        wanted = "sha256:" + hashlib.sha256(data).hexdigest()
        status, headers, _ = self("POST", f"/v2/{name}/blobs/uploads/")
        assert status == 202, status
        where = headers["location"].removeprefix(f"http://{headers['location'].split('/')[2]}")
        status, _, _ = self("PUT", f"{where}{'&' if '?' in where else '?'}digest={wanted}", data)
        assert status == 201, status
        return wanted


def in_processes(count, work):
    """Run work(number) in forked processes; seconds."""
    began = time.monotonic()
    children = []
    for number in range(count):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                work(number)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(pid)
    for pid in children:
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("a client failed")
    return time.monotonic() - began


def measured(server, work, count):
    """(count per second of the wall clock, CPU milliseconds of the server for one)"""
    before = server.cpu()
    seconds = work()
    return count / seconds, (server.cpu() - before) / count * 1000


def one_round(kind, folder, said, cleans):
    server = kind(folder, cleans)
    found = {}
    try:
        found["idle MB"] = (server.memory(), 0.0)
        small, pulls, size, clients = said.blobs, said.pulls, said.size << 20, said.clients

        def pushes(number):
            wire = Wire(server.address)
            for step in range(small // 4):
                wire.push(f"{number} {step}".encode() * 200)

        found["small uploads/s"] = measured(server, lambda: in_processes(4, pushes), small // 4 * 4)

        wire = Wire(server.address)
        layer, config = wire.push(b"x" * 4096), wire.push(b"{}")
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": "a/b", "digest": config, "size": 2},
            "layers": [{"mediaType": "a/b", "digest": layer, "size": 4096}],
        }).encode()  # fmt: skip
        for path in [f"/v2/bench/a/manifests/t{number}" for number in range(100)]:
            assert wire("PUT", path, manifest, MANIFEST)[0] == 201

        def gets(path):
            def work(number):
                wire = Wire(server.address)
                for _ in range(pulls // 4):
                    assert wire("GET", path)[0] == 200

            return lambda: in_processes(4, work)

        def manifests(number):
            wire = Wire(server.address)
            for step in range(small // 4):
                data = manifest.replace(b"a/b", b"a/%d-%d" % (number, step))
                assert wire("PUT", f"/v2/bench/a/manifests/p{number}-{step}", data, MANIFEST)[0] == 201

        found["manifests pushed/s"] = measured(server, lambda: in_processes(4, manifests), small // 4 * 4)
        found["manifests pulled/s"] = measured(server, gets("/v2/bench/a/manifests/t7"), pulls // 4 * 4)
        found["small blobs pulled/s"] = measured(server, gets(f"/v2/bench/a/blobs/{layer}"), pulls // 4 * 4)

        large = [os.urandom(size) for _ in range(3)]

        def uploads():
            began = time.monotonic()
            digests.extend(wire.push(data) for data in large)
            return time.monotonic() - began

        digests = []
        found["upload MB/s"] = measured(server, uploads, 3 * said.size)

        def downloads():
            began = time.monotonic()
            for digest in digests * 2:
                assert wire("GET", f"/v2/bench/a/blobs/{digest}")[2] == size
            return time.monotonic() - began

        found["download MB/s"] = measured(server, downloads, 6 * said.size)

        peak, over = [0.0], threading.Event()

        def watch():
            while not over.wait(0.02):
                peak[0] = max(peak[0], server.memory())

        watcher = threading.Thread(target=watch)
        watcher.start()

        def pull(number):
            assert Wire(server.address)("GET", f"/v2/bench/a/blobs/{digests[number % 3]}")[2] == size

        found[f"{clients} clients pull, MB/s"] = measured(
            server, lambda: in_processes(clients, pull), clients * said.size
        )
        over.set()
        watcher.join()
        found[f"MB with {clients} clients that pull"] = (peak[0], 0.0)
        peak[0] = 0.0
        over = threading.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        piece = os.urandom(4 << 20)

        def push(number):
            Wire(server.address).push(piece + b"%d" % number)

        found[f"{clients} clients push 4 MB, MB/s"] = measured(server, lambda: in_processes(clients, push), clients * 4)
        over.set()
        watcher.join()
        found[f"MB with {clients} clients that push"] = (peak[0], 0.0)
    finally:
        server.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blobs", type=int, default=400, help="small blobs, and manifests, that are pushed")
    parser.add_argument("--pulls", type=int, default=4000)
    parser.add_argument("--size", type=int, default=100, help="MB of a large blob")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--place", default="/var/tmp")
    said = parser.parse_args()
    results = {Cowshed.name: [], Docker.name: []}
    work = tempfile.mkdtemp(prefix="cowshed-bench-registry-", dir=said.place)
    try:
        with open(os.devnull, "wb") as cleans:
            for number in range(said.rounds):
                for kind in (Cowshed, Docker) if number % 2 else (Docker, Cowshed):
                    results[kind.name].append(one_round(kind, f"{work}/{kind.name}{number}", said, cleans))
    finally:
        shutil.rmtree(work)
    print(f"| what | {Cowshed.name} | CPU ms each | {Docker.name} | CPU ms each | ratio |\n|---|---|---|---|---|---|")
    for key in results[Cowshed.name][0]:
        row = []
        for name in (Cowshed.name, Docker.name):
            values = [one[key] for one in results[name]]
            row.append((statistics.median(v for v, _ in values), statistics.median(c for _, c in values)))
        (ours, cpu), (theirs, other) = row
        cells = [f"{ours:.4g}", f"{cpu:.3g}" if cpu else "", f"{theirs:.4g}", f"{other:.3g}" if other else ""]
        print(f"| {key} | {' | '.join(cells)} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
