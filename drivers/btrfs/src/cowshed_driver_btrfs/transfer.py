"""Layers as streams of `btrfs send`, version 1: sent by the kernel, received by replaying the steps here.

A stream that is received may come from anywhere: each name is resolved beneath the new subvolume without following a
link, lengths are bounded, and checksums are held.
"""

from __future__ import annotations

import errno
import os
import stat
from struct import error as struct_error
from struct import pack_into, unpack, unpack_from

from cowshed_driver_btrfs import sendstream as s
from cowshed_driver_btrfs.sendstream import BadStream
from cowshed_linux import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

_MOST = 1 << 17  # bytes of one command; the kernel's are 64 KiB at most
_BENEATH = paths.RESOLVE_BENEATH | paths.RESOLVE_NO_SYMLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Header:
    """The first command: which subvolume the stream is of, and which one it continues (b"" for none)."""

    def __init__(self, words: dict[int, bytes]) -> None:
        self.uuid, self.transaction = _sized(words, s.UUID, 16), _number(words, s.CTRANSID)
        self.base = _sized(words, s.CLONE_UUID, 16) if s.CLONE_UUID in words else b""


class Receiver:
    """Reads a stream: `header()`, then `into()` a subvolume that is empty or a snapshot of the base. Raises BadStream,
    OSError."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._table = _castagnoli()
        self._top = self._folder = self._file = -1
        self._above: bytes | None = None
        self._path: bytes | None = None

    def header(self) -> Header:
        head = self._read(len(s.MAGIC) + 4)
        if not head.startswith(s.MAGIC):
            raise BadStream("no btrfs stream")
        version = unpack_from("<I", head, len(s.MAGIC))[0]
        if version != 1:
            raise BadStream(f"version {version}")
        command, words = self._next()
        if command not in (s.SUBVOL, s.SNAPSHOT) or (command == s.SNAPSHOT) != (s.CLONE_UUID in words):
            raise BadStream("it does not begin with a subvolume")
        self._header = Header(words)
        return self._header

    def into(self, top: int, step: Callable[[], None]) -> None:
        """Replay all steps below the directory top; step is called once for each, and what it raises ends it."""
        self._top = top
        try:
            while True:
                command, words = self._next()
                if command == s.END:
                    return
                step()
                try:
                    self._do(command, words)
                except KeyError as missing:
                    raise BadStream(f"command {command} lacks attribute {missing}") from None
                except (OverflowError, ValueError) as error:  # of Python's calls: a number too large, a NUL in a name
                    raise BadStream(f"command {command}: {error}") from None
        finally:
            self._let_go()

    # ------------------------------------------------------------ bytes

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._source.read(count)
            if not part:
                raise BadStream("it is cut off")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _next(self) -> s.Command:
        head = bytearray(self._read(10))
        length, command, checksum = unpack("<IHI", head)
        if length > _MOST:
            raise BadStream(f"command {command} has {length} bytes")
        body = self._read(length)
        pack_into("<I", head, 6, 0)
        if self._checksum(bytes(head) + body) != checksum:
            raise BadStream(f"command {command} was changed on the way")
        try:
            return command, s.attributes(body, 0, length)
        except struct_error:
            raise BadStream(f"command {command} is cut off") from None

    def _checksum(self, data: bytes) -> int:
        """CRC-32C from 0, as the kernel has it, two bytes at a time."""
        table, value = self._table, 0
        even = len(data) & ~1
        for pair in memoryview(data)[:even].cast("H"):
            value = table[(value ^ pair) & 0xFFFF] ^ value >> 16
        if even < len(data):
            value = table[((value ^ data[-1]) & 0xFF) << 8] ^ value >> 8
        return value

    # ------------------------------------------------------------ steps

    def _do(self, command: int, words: dict[int, bytes]) -> None:
        if command == s.WRITE:
            self._write(words)
            return
        self._close_file()
        path = words[s.PATH]
        if command == s.UTIMES:
            name = self._name(path, top=True)
            times = _moment(words, s.ATIME), _moment(words, s.MTIME)
            os.utime(name, ns=times, dir_fd=self._folder, follow_symlinks=False)
        elif command == s.CHOWN:
            name = self._name(path, top=True)
            os.chown(
                name, _number(words, s.UID), _number(words, s.GID), dir_fd=self._folder, follow_symlinks=False
            )  # fmt: skip
        elif command == s.CHMOD:
            self._chmod(path, _number(words, s.MODE))
        elif command == s.SET_XATTR:
            os.setxattr(self._place(path), words[s.XATTR_NAME], words[s.XATTR_DATA], follow_symlinks=False)
        elif command == s.REMOVE_XATTR:
            os.removexattr(self._place(path), words[s.XATTR_NAME], follow_symlinks=False)
        elif command == s.TRUNCATE:
            os.ftruncate(self._open(path), _number(words, s.SIZE))
        elif command == s.CLONE:
            self._clone(words)
        elif command in (s.RENAME, s.LINK):
            self._two(command, words)
        elif command in (s.UNLINK, s.RMDIR):
            remove = os.unlink if command == s.UNLINK else os.rmdir
            remove(self._name(path), dir_fd=self._folder)
            self._forget()
        else:
            self._make(command, self._name(path), words)

    def _make(self, command: int, name: bytes, words: dict[int, bytes]) -> None:
        if command == s.MKFILE:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o600, dir_fd=self._folder))
        elif command == s.MKDIR:
            os.mkdir(name, 0o700, dir_fd=self._folder)
        elif command == s.SYMLINK:
            os.symlink(words[s.PATH_LINK], name, dir_fd=self._folder)
        elif command in (s.MKNOD, s.MKFIFO, s.MKSOCK):
            device = _number(words, s.RDEV)  # as the kernel packs it (new_encode_dev)
            number = os.makedev(device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00)
            os.mknod(name, _number(words, s.MODE), number, dir_fd=self._folder)
        else:
            raise BadStream(f"command {command} is unknown, or has no data")

    def _two(self, command: int, words: dict[int, bytes]) -> None:
        old, new = (words[s.PATH], words[s.PATH_TO]) if command == s.RENAME else (words[s.PATH_LINK], words[s.PATH])
        first = self._name(old)
        there = os.dup(self._folder)
        try:
            second = self._name(new)
            if command == s.RENAME:
                os.rename(first, second, src_dir_fd=there, dst_dir_fd=self._folder)
            else:
                os.link(first, second, src_dir_fd=there, dst_dir_fd=self._folder, follow_symlinks=False)
        finally:
            os.close(there)
        self._forget()

    def _chmod(self, path: bytes, mode: int) -> None:
        fd = os.open(self._name(path, top=True), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise BadStream(f"{path!r} is a link, which has no mode")
            os.chmod(f"/proc/self/fd/{fd}", mode & 0o7777)
        finally:
            os.close(fd)

    def _write(self, words: dict[int, bytes]) -> None:
        fd, at = self._open(words[s.PATH]), _number(words, s.FILE_OFFSET)
        rest = memoryview(words[s.DATA])
        while rest:
            done = os.pwrite(fd, rest, at)
            rest, at = rest[done:], at + done

    def _clone(self, words: dict[int, bytes]) -> None:
        """Data that lies elsewhere in the same tree."""
        if words[s.CLONE_UUID] != self._header.uuid:
            raise BadStream("it wants data of another subvolume")
        source = os.dup(self._open(words[s.CLONE_PATH], write=False))
        try:
            self._close_file()
            target = self._open(words[s.PATH])
            here, there = _number(words, s.CLONE_OFFSET), _number(words, s.FILE_OFFSET)
            left = _number(words, s.CLONE_LEN)
            while left:
                done = os.copy_file_range(source, target, left, here, there)
                if not done:
                    raise BadStream("it wants data beyond a file's end")
                left, here, there = left - done, here + done, there + done
        finally:
            os.close(source)

    # ------------------------------------------------------------ names

    def _name(self, path: bytes, *, top: bool = False) -> bytes:
        """Open the directory of a path; its last part. top: it may be the top itself."""
        above, _, name = path.rpartition(b"/")
        if b"\0" in path or (name in (b"", b".", b"..") and not (top and not path)):
            raise BadStream(f"{path!r} is no name")
        if above != self._above:
            self._forget()
            try:
                self._folder = paths.openat2(self._top, above or b".", _DIRECTORY, resolve=_BENEATH)
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.ELOOP, errno.ENOTDIR, errno.ENOENT):
                    raise BadStream(f"{path!r} leads nowhere") from None
                raise
            self._above = above
        return name or b"."

    def _place(self, path: bytes) -> bytes:
        name = self._name(path, top=True)
        return b"/proc/self/fd/%d/%s" % (self._folder, name)

    def _open(self, path: bytes, *, write: bool = True) -> int:
        """A regular file; kept open for the next write."""
        if path != self._path:
            self._close_file()
            name = self._name(path)
            flags = (os.O_WRONLY if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=self._folder)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise BadStream(f"{path!r} is no file")
            self._file, self._path = fd, path
        return self._file

    def _close_file(self) -> None:
        fd, self._file, self._path = self._file, -1, None
        if fd >= 0:
            os.close(fd)

    def _forget(self) -> None:
        """A directory may have moved."""
        fd, self._folder, self._above = self._folder, -1, None
        if fd >= 0:
            os.close(fd)

    def _let_go(self) -> None:
        self._close_file()
        self._forget()


def _sized(words: dict[int, bytes], kind: int, size: int) -> bytes:
    value = words.get(kind, b"")
    if len(value) != size:
        raise BadStream(f"attribute {kind} has {len(value)} bytes")
    return value


def _number(words: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(_sized(words, kind, 8), "little")


def _moment(words: dict[int, bytes], kind: int) -> int:
    seconds, rest = unpack("<qI", _sized(words, kind, 12))
    return int(seconds * 1_000_000_000 + rest)


def _castagnoli() -> list[int]:
    """The remainders of all pairs of bytes."""
    single = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        single.append(n)
    return [single[(single[pair & 0xFF] ^ pair >> 8) & 0xFF] ^ single[pair & 0xFF] >> 8 for pair in range(1 << 16)]
