"""The driver on a simulation of device-mapper, for machines without: `--driver simulated:plugin`.

A thin device is a file with holes, a snapshot a copy of it, an active device a loop device: removing it while it is
mounted leaves it to the kernel (autoclear), as a deferred removal does. All is under the directory COWSHED_SIMULATION.
What it cannot show: sharing of blocks, a pool that is full, freezing, power cuts.
"""

import errno
import fcntl
import os
import struct
import subprocess
import threading

from cowshed_driver_devicemapper import blockdevices, make_plugin, tables
from cowshed_driver_devicemapper.libdevmapper import Info, Target

_CLR_FD, _SET_STATUS, _GET_STATUS = 0x4C01, 0x4C04, 0x4C05
_BLOCK = 64 << 10


def _fail(number, what):
    raise OSError(number, f"{what}: {os.strerror(number)}")


class Simulation:
    """See `cowshed_driver_devicemapper.mapper.Mapper`."""

    def __init__(self):
        self.at = os.environ["COWSHED_SIMULATION"]
        self.nodes = f"{self.at}/nodes"

    def library_version(self):
        return "simulated"

    driver_version = library_version

    def targets(self):
        return {"thin-pool": "1.22.0", "thin": "1.22.0"}

    # a device is a file: "TABLE KIND START LENGTH PARAMETERS", and for a thin one the loop device

    def _path(self, name):
        return f"{self.at}/devices/{name}"

    def _lines(self, name):
        try:
            with open(self._path(name)) as file:
                return file.read().split("\n")
        except FileNotFoundError:
            return None

    def _put(self, path, text):
        with open(f"{self.at}/new.{os.getpid()}.{threading.get_ident()}", "w") as file:
            file.write(text)
        os.rename(file.name, path)

    def names(self):
        return [name for name in sorted(os.listdir(f"{self.at}/devices")) if self.info(name) is not None]

    def info(self, name):
        lines = self._lines(name)
        if lines is None:
            return None
        words, loop, read_only = lines[0].split(" "), lines[1], lines[2] == "ro"
        if words[0] == "thin-pool":
            return Info(0, 0)
        status = self._status(loop)
        if status is None or not status[0].endswith(f"/thins/{words[-1][1:]}/{words[4]}"):
            os.unlink(self._path(name))  # the kernel has freed it with its last user
            return None
        return Info(
            7, int(loop[4:]), read_only=read_only, deferred=bool(status[1]), suspended=os.path.exists(self._held(name))
        )

    def _held(self, name):
        return f"{self.at}/suspended/{name}"

    def _status(self, loop):
        try:
            with (
                open(f"/sys/block/{loop}/loop/backing_file") as file,
                open(f"/sys/block/{loop}/loop/autoclear") as auto,
            ):
                return file.read().strip(), int(auto.read())
        except OSError:
            return None

    def table(self, name):
        lines = self._lines(name)
        kind, start, length, parameters = lines[0].split(" ", 3)
        return [Target(int(start), int(length), kind, parameters.rpartition(" #")[0])]

    def status(self, name):
        target = self.table(name)[0]
        with open(f"{self.at}/transaction/{name}") as file:
            transaction = file.read()
        total = target.length // tables.BLOCK
        words = f"{transaction} 10/512 0/{total} - rw discard_passdown error_if_no_space - 32"
        return [Target(0, target.length, "thin-pool", words)]

    def create(self, name, target, *, read_only=False):
        if self.info(name) is not None:
            _fail(errno.EBUSY, f"make device {name}")
        loop = ""
        if target.kind == "thin-pool":
            os.makedirs(f"{self.at}/thins/{name}", exist_ok=True)
            with open(blockdevices.node_of(target.parameters.split()[0]), "r+b") as metadata:
                if not any(metadata.read(4096)):  # a pool that is new
                    for thin in os.listdir(f"{self.at}/thins/{name}"):
                        os.unlink(f"{self.at}/thins/{name}/{thin}")
                    self._put(f"{self.at}/transaction/{name}", "0")
                    metadata.seek(0)
                    metadata.write(b"simulated")
            pool = name
        else:
            pool = next(p for p in sorted(os.listdir(f"{self.at}/thins"), key=len, reverse=True) if name.startswith(p))
            path = f"{self.at}/thins/{pool}/{target.parameters.split()[1]}"
            if not os.path.exists(path):
                _fail(errno.ENODATA, f"make device {name}")
            if os.stat(path).st_size < target.length * 512:
                os.truncate(path, target.length * 512)
            fd = blockdevices.attach_loop(path, read_only=read_only)
            self._autoclear(fd, on=False)
            loop = f"loop{os.minor(os.fstat(fd).st_rdev)}"
            os.close(fd)
        line = f"{target.kind} {target.start} {target.length} {target.parameters} #{pool}"
        self._put(self._path(name), f"{line}\n{loop}\n{'ro' if read_only else 'rw'}\n")
        return self.info(name)

    def _autoclear(self, fd, *, on):
        status = bytearray(232)
        fcntl.ioctl(fd, _GET_STATUS, status)
        flags = struct.unpack_from("@I", status, 52)[0]
        struct.pack_into("@I", status, 52, flags | 4 if on else flags & ~4)
        fcntl.ioctl(fd, _SET_STATUS, status)

    def remove(self, name, *, deferred=False):
        if self.info(name) is None:
            return
        loop = self._lines(name)[1]
        if loop:
            try:
                fd = os.open(f"/dev/{loop}", os.O_RDWR | os.O_CLOEXEC | (0 if deferred else os.O_EXCL))
            except OSError:
                fd = os.open(f"/dev/{loop}", os.O_RDONLY | os.O_CLOEXEC | (0 if deferred else os.O_EXCL))
            try:
                fcntl.ioctl(fd, _CLR_FD)
            finally:
                os.close(fd)
        if not loop or not deferred:
            os.unlink(self._path(name))

    def suspend(self, name):
        os.sync()
        with open(self._held(name), "w"):
            pass

    def resume(self, name):
        os.unlink(self._held(name))

    def message(self, name, text):
        words = text.split()
        thins = f"{self.at}/thins/{name}"
        if words[0] == "@cancel_deferred_remove":
            if self.info(name) is None:
                _fail(errno.ENXIO, text)
            fd = os.open(f"/dev/{self._lines(name)[1]}", os.O_RDONLY)
            self._autoclear(fd, on=False)
            os.close(fd)
        elif words[0] == "set_transaction_id":
            self._put(f"{self.at}/transaction/{name}", words[2])
        elif words[0] == "delete":
            if not os.path.exists(f"{thins}/{words[1]}"):
                _fail(errno.ENODATA, text)
            for device in self.names():
                line = self._lines(device)[0].split(" ")
                if line[0] == "thin" and line[4] == words[1] and line[-1] == f"#{name}":
                    _fail(errno.EBUSY, text)
            os.unlink(f"{thins}/{words[1]}")
        else:
            if os.path.exists(f"{thins}/{words[1]}"):
                _fail(errno.EEXIST, text)
            new = f"{self.at}/new.{os.getpid()}.{threading.get_ident()}"
            if words[0] == "create_thin":
                with open(new, "w"):
                    pass
            elif not os.path.exists(f"{thins}/{words[2]}"):
                _fail(errno.ENODATA, text)
            else:
                subprocess.run(["cp", "--sparse=always", f"{thins}/{words[2]}", new], check=True)
            os.rename(new, f"{thins}/{words[1]}")

    def thin_devices(self, pool):
        folder = f"{self.at}/thins/{pool}"
        return {int(name): os.stat(f"{folder}/{name}").st_blocks // 128 for name in os.listdir(folder)}

    def thin_difference(self, pool, old, new):
        folder, found = f"{self.at}/thins/{pool}", []
        with open(f"{folder}/{old}", "rb") as one, open(f"{folder}/{new}", "rb") as two:
            for block in sorted(_blocks(one.fileno()) | _blocks(two.fileno())):
                here, there = (os.pread(x.fileno(), _BLOCK, block * _BLOCK) for x in (one, two))
                if here != there and (here.strip(b"\0") or there.strip(b"\0")):
                    found.append((block, 1))
        return found


def _blocks(fd):
    """The blocks of a file that are not holes."""
    found, at, size = set(), 0, os.fstat(fd).st_size
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        found.update(range(at // _BLOCK, (end - 1) // _BLOCK + 1))
        at = end
    return found


def simulation():
    for name in ("devices", "thins", "transaction", "suspended"):
        os.makedirs(f"{os.environ['COWSHED_SIMULATION']}/{name}", exist_ok=True)
    return Simulation()


plugin = make_plugin(simulation)
