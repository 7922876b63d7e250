"""Detach keys: the notation, and finding them however the input is cut."""

import itertools

import pytest

from cowshed.errors import BadUsage
from cowshed.monitor.relay import detach_sequence, split_keys


@pytest.mark.parametrize(
    ("text", "keys"), [("", b""), ("a", b"a"), ("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-@,ctrl-[,x", b"\0\x1bx")]
)
def test_notation(text, keys):
    assert detach_sequence(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "ctrl-1", "a,,b", "ab"])
def test_wrong_notation_names_the_key(text):
    with pytest.raises(BadUsage, match="no detach key"):
        detach_sequence(text)


def passed(chunks, keys):
    """What goes on to the container, and whether the client detached."""
    out, held = b"", b""
    for chunk in chunks:
        data, held, detached = split_keys(held + chunk, keys)
        out += data
        if detached:
            return out, True
    return out + held, False


@pytest.mark.parametrize("keys", [b"pq", b"ppq", b"p", b"pqp"])
def test_every_input_in_every_cut_is_passed_on_up_to_the_keys(keys):
    for length in range(6):
        for letters in itertools.product(b"pqx", repeat=length):
            whole = bytes(letters)
            before, found, _ = whole.partition(keys)
            for cuts in itertools.product((False, True), repeat=max(0, length - 1)):
                chunks, at = [], 0
                for n, cut in enumerate(cuts, 1):
                    if cut:
                        chunks.append(whole[at:n])
                        at = n
                chunks.append(whole[at:])
                assert passed(chunks, keys) == (before, bool(found)), (chunks, keys)


def test_without_keys_nothing_is_held_back():
    assert split_keys(b"\x10\x11", b"") == (b"\x10\x11", b"", False)
