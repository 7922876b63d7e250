"""Layers that mean harm, made at random from what has broken other engines: each is an archive that a builder could
send. The same seed gives the same layers."""

from __future__ import annotations

import random

FILE, LINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = b"0123456"
_KINDS = (FILE, FILE, FILE, LINK, SYMLINK, SYMLINK, DIRECTORY, DIRECTORY, FIFO, CHAR)
_PARTS = ("a", "b", "c", "link", "up", "etc", "dev", "proc")
_ODD = (
    "", ".", "..", "../..", "/", "//", "./", ".wh.", ".wh..", ".wh...", ".wh..wh..opq", ".wh..wh.plnk", ".wh.a",
    "a/.wh.b", "link/.wh.canary", "up/.wh.canary", "n" * 255, "n" * 256, "d/" * 100 + "f", "\x01\x7f", "a\\b",
    "a:b", "é", "a\n",
)  # fmt: skip
_ATTRIBUTES = (
    "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.opaque",
    "user.overlay.origin", "security.capability", "security.selinux", "security.ima", "user.fine", "trusted.fine", "",
    "user.", "system.posix_acl_access", "system.posix_acl_default", "btrfs.compression",
)  # fmt: skip


class Hostile:
    """outside: the path of a directory that no layer may change; it lies beside the root that they are applied to."""

    def __init__(self, seed: int, outside: str) -> None:
        self._random = random.Random(seed)
        self._outside = outside
        relative = "../" * 12 + outside.lstrip("/")
        beside = "../" + outside.rpartition("/")[2]
        self._ways = (
            outside, relative, beside, f"/proc/self/root{outside}", f"/proc/1/root{outside}", "/", "..", "/dev",
            "/proc/self/fd/3", f"{outside}/canary", f"{beside}/canary", "a/../../" + beside,
        )  # fmt: skip

    def layers(self) -> list[bytes]:
        """One to four archives, to be applied in order to one tree."""
        return [self.layer() for _ in range(self._random.choice((1, 2, 2, 3, 4)))]

    def layer(self) -> bytes:
        random_ = self._random
        data = b"".join(self._member() for _ in range(random_.randrange(1, 14)))
        if random_.random() < 0.9:
            data += bytes(1024)
        if random_.random() < 0.15:
            data = self._damaged(data)
        return data

    def _name(self) -> str:
        random_ = self._random
        kind = random_.randrange(10)
        if kind < 5:
            return "/".join(random_.choices(_PARTS, k=random_.randrange(1, 4)))
        if kind < 7:
            return random_.choice(self._ways) + random_.choice(("", "/canary", "/new", "/.wh.canary", "/.wh..wh..opq"))
        if kind < 9:
            return random_.choice(("link", "up", "a/link", "b/up")) + random_.choice(("", "/canary", "/x/y", "/.."))
        return random_.choice(_ODD)

    def _member(self) -> bytes:
        random_ = self._random
        kind = bytes([random_.choice(_KINDS)])
        name = self._name()
        if kind == b"2" and random_.random() < 0.5:
            name = random_.choice(("link", "up", "a/link", "b/up", "a", "b", "etc", "dev", "proc"))
        target = ""
        if kind == b"2":
            target = random_.choice((*self._ways, "a", "b/c", "link", "up", ""))
        elif kind == b"1":
            target = random_.choice((*self._ways, "link/canary", "up/canary", "a", "a/b", "link", "", "."))
        data = random_.choice((b"", b"x", b"evil\n" * 30, bytes(700))) if kind == b"0" else b""
        mode = random_.choice((0o644, 0o755, 0o4755, 0o2777, 0o1777, 0, 0o7777))
        owner = random_.choice((0, 0, 1, 1000, 0o7777777))
        device = (1, 3) if kind == b"3" else (0, 0)
        size = len(data)
        if random_.random() < 0.03:
            size = random_.choice((1 << 33, 512, 3))
        pax: list[tuple[str, str]] = []
        if random_.random() < 0.15:
            pax.append(("path", self._name()))
        if target and random_.random() < 0.1:
            pax.append(("linkpath", random_.choice(self._ways)))
        if random_.random() < 0.15:
            value = random_.choice(("y", "../../" + self._outside, "", "\x01\0\0\x02" + "\0" * 16))
            pax.append((f"SCHILY.xattr.{random_.choice(_ATTRIBUTES)}", value))
        if random_.random() < 0.04:
            pax.append((random_.choice(("uid", "gid", "size", "mtime", "GNU.sparse.major", "GNU.sparse.realsize")),
                        random_.choice(("-1", "4294967295", "1", "nan", "1e9", "9" * 30, ""))))  # fmt: skip
        before = b""
        if pax:
            body = b"".join(_record(key, value) for key, value in pax)
            before = _header("pax", b"x", len(body)) + body + bytes(-len(body) % 512)
        elif random_.random() < 0.08 or len(name.encode()) > 100:
            body = name.encode() + b"\0"
            before = _header("././@LongLink", b"L", len(body)) + body + bytes(-len(body) % 512)
        head = _header(name, kind, size, mode, owner, target, device)
        return before + head + data + bytes(-len(data) % 512)

    def _damaged(self, data: bytes) -> bytes:
        random_ = self._random
        changed = bytearray(data)
        for _ in range(random_.choice((1, 2, 5))):
            at = random_.randrange(len(changed))
            changed[at] = random_.randrange(256)
            block = at // 512 * 512
            if changed[block + 257 : block + 262] == b"ustar" and random_.random() < 0.7:  # let its sum be right
                head = changed[block : block + 512]
                changed[block + 148 : block + 156] = b"%06o\0 " % (sum(head) - sum(head[148:156]) + 256)
        return bytes(changed[: random_.randrange(len(changed))] if random_.random() < 0.2 else changed)


def _header(
    name: str, kind: bytes, size: int, mode: int = 0o644, owner: int = 0, target: str = "",
    device: tuple[int, int] = (0, 0),
) -> bytes:  # fmt: skip
    block = bytearray(512)

    def put(at: int, data: bytes) -> None:
        block[at : at + len(data)] = data

    put(0, name.encode()[:100])
    put(100, b"%07o\0%07o\0%07o\0" % (mode, owner, owner))
    put(124, b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big"))
    put(136, b"%011o\0" % 1_700_000_000)
    put(156, kind)
    put(157, target.encode()[:100])
    put(257, b"ustar\x0000")
    put(329, b"%07o\0%07o\0" % device)
    put(148, b"%06o\0 " % (sum(block) + 8 * 32))
    return bytes(block)


def _record(key: str, value: str) -> bytes:
    rest = len(f" {key}={value}\n".encode())
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return f"{length} {key}={value}\n".encode()
