"""kill -9 of commands at every named step and at random moments: the next command works, the store checks clean,
nothing is left."""

import os
import random
import signal
import time

import pytest

VICTIMS = {
    "pull": ("pull", "-q", "IMAGE"),
    "run": ("run", "--rm", "IMAGE", "true"),
    "create": ("create", "--name", "made", "IMAGE", "true"),
    "rm": ("rm", "-f", "base"),
    "rmi": ("rmi", "IMAGE"),
}


def words(name, image):
    return tuple(image if w == "IMAGE" else w for w in VICTIMS[name])


def make_base(engine):
    if "base" not in engine.names():
        assert engine("run", "--name", "base", engine.image, "sh", "-c", "echo x > /new").returncode == 0


def assert_sound(engine):
    """The next commands work and what the store says of itself is clean."""
    engine.ok("pull", "-q", engine.image)
    engine.ok("run", "--rm", engine.image, "true")
    assert engine.ok("system", "check").strip().splitlines()[-1] == "clean"
    for name in engine.names():
        if name != "base":
            engine.ok("rm", "-f", name)


def steps_of(engine, command, tmp_path):
    """The named steps that a command passes, in order, as the engine itself lists them."""
    trace = tmp_path / "steps"
    engine(*command, env={"COWSHED_FAULT": f"trace@{trace}"})
    return trace.read_text().split() if trace.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("name", VICTIMS)
def test_killed_at_each_named_step(pulled, name, tmp_path):
    make_base(pulled)
    if name in ("pull", "rmi"):
        pulled.ok("rm", "-f", "base")
    if name == "pull":
        pulled.ok("rmi", "-f", pulled.image)
    steps = steps_of(pulled, words(name, pulled.image), tmp_path)
    assert steps, f"{name} passes no named step"
    for step in dict.fromkeys(steps):
        pulled("rm", "-f", "made")
        pulled.ok("pull", "-q", pulled.image)
        make_base(pulled)
        if name in ("pull", "rmi"):
            pulled.ok("rm", "-f", "base")
        if name == "pull":
            pulled.ok("rmi", "-f", pulled.image)
        done = pulled(*words(name, pulled.image), env={"COWSHED_FAULT": f"kill@{step}"})
        assert done.returncode == -signal.SIGKILL, (step, done)
        assert_sound(pulled)


@pytest.mark.slow
def test_killed_at_random_moments(pulled):
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    print(f"seed {seed}")
    rounds = int(os.environ.get("COWSHED_CRASH_ROUNDS", "50"))
    for n in range(rounds):
        if n % 10 == 0:
            pulled.ok("pull", "-q", pulled.image)
            make_base(pulled)
        name = chance.choice(list(VICTIMS))
        process = pulled.spawn(*words(name, pulled.image), stdin=-3, stdout=-3, stderr=-3)
        time.sleep(chance.random() * 0.12)
        process.kill()
        process.wait()
        if n % 5 == 4:
            pulled.ok("pull", "-q", pulled.image)
            assert_sound(pulled)
