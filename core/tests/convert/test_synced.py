"""What a conversion has written is synced by a descriptor that was open before."""

import os

import pytest

from cowshed.convert import execute


def test_what_is_synced_was_opened_before_anything_is_written(tmp_path, monkeypatch):
    """syncfs(2) tells an error of writing back only to descriptors that were open when it happened."""
    synced, opened = [], os.open
    held = []
    monkeypatch.setattr(execute.files, "syncfs", synced.append)
    monkeypatch.setattr(execute.os, "open", lambda *words, **more: held.append(opened(*words, **more)) or held[-1])
    root = opened(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with execute._Synced(root):
            assert len(held) == 1
            assert os.fstat(held[0]).st_ino == os.fstat(root).st_ino
            assert synced == []
        assert synced == held
        with pytest.raises(ValueError, match="cut"), execute._Synced(root):
            raise ValueError("cut")
        assert synced == held[:1], "what failed is undone, not synced"
        for fd in held:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
    finally:
        os.close(root)
