"""Two hundred commands at once on one store: no undocumented error, no deadlock, `ps` answers all the while."""

import concurrent.futures
import random
import time

import pytest

LEGAL = (b"no such", b"not found", b"is in use", b"already", b"being removed", b"is running", b"conflict", b"busy")


@pytest.mark.slow
def test_two_hundred_mixed_commands(pulled):
    chance = random.Random(20261124)
    names = [f"c{n}" for n in range(12)]

    def command(n: int) -> tuple[tuple[str, ...], object]:
        name = names[n % len(names)]
        words = chance.choice([
            ("pull", "-q", pulled.image), ("run", "--rm", pulled.image, "true"),
            ("run", "--name", name, pulled.image, "true"),
            ("run", "-d", "--name", name, pulled.image, "sleep", "1000"), ("rm", "-f", name), ("ps", "-a"), ("images",),
            ("commit", name, f"test/c:{n % 5}"), ("rmi", f"test/c:{n % 5}"), ("ps", "-a"), ("inspect", name),
        ])  # fmt: skip
        start = time.monotonic()
        done = pulled(*words, timeout=300)
        return words, (done, time.monotonic() - start)

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        results = list(pool.map(command, range(200)))
    for words, (done, _) in results:
        assert b"Traceback" not in done.stderr, (words, done.stderr)
        if done.returncode != 0:
            assert any(text in done.stderr.lower() for text in LEGAL), (words, done.returncode, done.stderr)
        if words[0] in ("ps", "images", "pull"):
            assert done.returncode == 0, (words, done.stderr)
        if words == ("run", "--rm", pulled.image, "true"):
            assert done.returncode == 0, (words, done.stderr)
    pulled.close()
    assert pulled.names() == []
