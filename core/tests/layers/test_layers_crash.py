"""kill -9 at every named step of every operation on layers: the next command repairs, and nothing is left."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORK = Path(__file__).parent / "work.py"
spec = importlib.util.spec_from_file_location("layers_work", WORK)
work = importlib.util.module_from_spec(spec)
spec.loader.exec_module(work)


def command(root, driver, *words, fault=""):
    env = {**os.environ, "COWSHED_FAULT": fault}
    return subprocess.run(
        [sys.executable, str(WORK), str(root), driver, *words], env=env, capture_output=True, timeout=120
    )


def steps(root, driver, trace):
    done = command(root, driver, "everything", fault=f"trace@{trace}")
    assert done.returncode == 0, done.stderr.decode()
    return trace.read_text().split()


def objects(layers):
    return [found.name for found in layers.driver.scan()]


@pytest.mark.parametrize("driver", ["overlay", "copy"])
def test_killed_at_each_named_step_of_everything(tmp_path, driver):
    passed = steps(tmp_path / "trace.store", driver, tmp_path / "trace")
    points = [(name, passed[: n + 1].count(name)) for n, name in enumerate(passed)]
    assert len(points) > 20
    root = tmp_path / "store"
    for name, nth in points:
        done = command(root, driver, "everything", fault=f"kill@{name}:{nth}")
        assert done.returncode == -signal.SIGKILL, (name, nth, done.stderr.decode())
        layers = work.opened(str(root), driver)
        work.recover(layers)
        findings = [f for f in layers.check() if f.code != "orphan"]
        assert not findings, (name, nth, findings)
        with layers.store.transaction() as tx:
            tx.execute("delete from chains")
            tx.execute("delete from images")
        layers.remove_unreferenced()
        for row in work.rows.list_all(layers.store, driver):
            assert row.kind == "active", (name, nth, row)  # made and told of: a container's
            layers.store.locks.take("layers", row.number)
            work.remove(layers, layers.load(row.number))
        layers.remove_unreferenced()
        layers.purge(10)
        assert (objects(layers), list(layers.check())) == ([], []), (name, nth)
        assert layers.store.query("select count(*) from layers")[0][0] == 0
        layers.store.close()
    done = command(root, driver, "everything")
    assert done.returncode == 0, done.stderr.decode()


def test_an_error_at_each_step_of_a_pull_leaves_it_repeatable(tmp_path):
    trace = tmp_path / "trace"
    assert command(tmp_path / "t", "overlay", "pull", fault=f"trace@{trace}").returncode == 0
    passed = trace.read_text().split()
    for n, name in enumerate(passed):
        nth = passed[: n + 1].count(name)
        done = command(tmp_path / f"s{n}", "overlay", "pull", fault=f"error@{name}:{nth}")
        assert done.returncode == 1, (name, nth)
        assert b"fault injected" in done.stderr, (name, done.stderr)
        layers = work.opened(str(tmp_path / f"s{n}"), "overlay")
        work.recover(layers)
        work.pull(layers)
        layers.purge(10)
        assert list(layers.check()) == []
        layers.store.close()


@pytest.mark.parametrize("driver", ["overlay", "copy"])
def test_eight_processes_make_remove_and_purge_at_once(tmp_path, driver):
    root = tmp_path / "store"
    assert command(root, driver, "pull").returncode == 0
    words = [sys.executable, str(WORK), str(root), driver, "churn", "12"]
    running = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(8)]
    errors = [process.communicate(timeout=120)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 8, errors
    layers = work.opened(str(root), driver)
    layers.purge(10)
    assert list(layers.check()) == []
    assert len(objects(layers)) == 3
    layers.store.close()


def test_two_first_commands_make_one_store(tmp_path):
    words = [sys.executable, str(WORK), str(tmp_path / "store"), "overlay", "churn", "1"]
    running = [subprocess.Popen([*words[:-2], "recover"], stderr=subprocess.PIPE) for _ in range(6)]
    errors = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 6, errors
    layers = work.opened(str(tmp_path / "store"), "overlay")
    assert layers.store.query("select count(*) from drivers")[0][0] == 1
    layers.store.close()


@pytest.mark.parametrize("driver", ["overlay", "copy"])
def test_processes_killed_at_random_moments_while_others_work(tmp_path, driver):
    root = tmp_path / "store"
    assert command(root, driver, "pull").returncode == 0
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    words = [sys.executable, str(WORK), str(root), driver, "churn"]
    for _ in range(8):
        steady = subprocess.Popen([*words, "6"], stderr=subprocess.PIPE)
        victims = [subprocess.Popen([*words, "100"], stderr=subprocess.DEVNULL) for _ in range(2)]
        time.sleep(0.15 + chance.random() * 0.3)
        for victim in victims:
            victim.kill()
            victim.wait()
        errors = steady.communicate(timeout=120)[1].decode()
        assert steady.returncode == 0, errors
    layers = work.opened(str(root), driver)
    work.recover(layers)
    for row in work.rows.list_all(layers.store, driver):
        if row.kind == "active":  # made, and its maker killed before it was removed: no journal row
            layers.store.locks.take("layers", row.number)
            work.remove(layers, layers.load(row.number))
    layers.purge(10)
    assert list(layers.check()) == []
    assert len(objects(layers)) == 3
    layers.store.close()
