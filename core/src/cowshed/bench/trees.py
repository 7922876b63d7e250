"""Trees of files that are the same in every run, and the digest by which a subject's work is held against what it
should be."""

from __future__ import annotations

import hashlib
import io
import os
import random

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER = 500  # files
_PIECE = 1 << 20


class Recipe:
    """Which files a tree has: by path, mode, size and a number that their bytes come from."""

    def __init__(self, seed: int = 1) -> None:
        self.files: dict[str, tuple[int, int, int]] = {}
        self._noise = random.Random(seed).randbytes(2 * _PIECE)

    def add(self, path: str, size: int, *, mode: int = 0o644, number: int | None = None) -> str:
        self.files[path] = (mode, size, len(self.files) if number is None else number)
        return path

    def many(self, folder: str, count: int, size: int) -> Recipe:
        """count files of a size in folders of 500."""
        for n in range(count):
            self.add(f"{folder}/{n // _FOLDER}/{n}", size)
        return self

    def copy(self) -> Recipe:
        other = Recipe.__new__(Recipe)
        other.files, other._noise = dict(self.files), self._noise
        return other

    def pieces(self, path: str) -> Iterator[bytes]:
        """The bytes of a file."""
        _, size, number = self.files[path]
        head = number.to_bytes(8, "big")[:size]
        yield head
        left = size - len(head)
        while left > 0:
            start = number * 61 % _PIECE
            piece = self._noise[start : start + min(left, _PIECE)]
            yield piece
            left -= len(piece)

    def data(self, path: str) -> bytes:
        return b"".join(self.pieces(path))

    def folders(self) -> list[str]:
        found = {""}
        for path in self.files:
            above = path.rpartition("/")[0]
            while above and above not in found:
                found.add(above)
                above = above.rpartition("/")[0]
        return sorted(found)

    def write(self, root: str) -> None:
        """Make it below a directory that has none of it."""
        for folder in self.folders():
            os.makedirs(f"{root}/{folder}", exist_ok=True)
        for path in self.files:
            self.write_file(root, path)

    def write_file(self, root: str, path: str) -> None:
        """One file, new or over what is there."""
        mode = self.files[path][0]
        fd = os.open(f"{root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            for piece in self.pieces(path):
                os.write(fd, piece)
        finally:
            os.close(fd)

    def archive(self) -> bytes:
        """As a tar archive, as layers are."""
        import tarfile

        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for folder in self.folders():
                if folder:
                    info = tarfile.TarInfo(folder)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
            for path, (mode, size, _) in self.files.items():
                info = tarfile.TarInfo(path)
                info.mode, info.size = mode, size
                tar.addfile(info, io.BytesIO(self.data(path)))
        return buffer.getvalue()

    def digest(self) -> str:
        """What `digest` finds of a tree that was made so."""
        whole = hashlib.sha256()
        for path in sorted(self.files):
            mode, size, _ = self.files[path]
            content = hashlib.sha256()
            for piece in self.pieces(path):
                content.update(piece)
            whole.update(_line(path, mode, size, content.hexdigest()))
        return whole.hexdigest()


def digest(root: str) -> str:
    """Of the paths, modes, sizes and contents of all files below a directory."""
    found = []
    for folder, _, names in os.walk(root):
        below = os.path.relpath(folder, root)
        found += [name if below == "." else f"{below}/{name}" for name in names]
    whole = hashlib.sha256()
    for path in sorted(found):
        fd = os.open(f"{root}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            content = hashlib.sha256()
            while piece := os.read(fd, _PIECE):
                content.update(piece)
        finally:
            os.close(fd)
        whole.update(_line(path, status.st_mode & 0o7777, status.st_size, content.hexdigest()))
    return whole.hexdigest()


def _line(path: str, mode: int, size: int, content: str) -> bytes:
    return f"{path}\0{mode:o}\0{size}\0{content}\n".encode(errors="surrogateescape")
