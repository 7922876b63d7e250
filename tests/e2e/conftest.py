"""The engine from outside: the installed command, a real registry, a store of its own for each test."""

import contextlib
import glob
import json
import os
import signal
import sqlite3
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cowshed_testing import leftovers
from cowshed_testing.images import Image, LayerTar, busybox_layer
from cowshed_testing.places import NotHere, place
from cowshed_testing.registry import Registry

TOP = Path(__file__).parents[2]
COMMAND = str(TOP / ".venv/bin/cowshed")
SLOWDOWN = float(os.environ.get("COWSHED_TEST_SLOWDOWN", "1"))  # in a guest without hardware to help


class Engine:
    """`cowshed` on one store. A call returns the finished process; `ok` insists on status 0 and gives the output."""

    def __init__(self, folder: Path, driver: str | None = None, command: str = COMMAND) -> None:
        self.command = command
        self.root, self.run_root = folder / "store", folder / "run"
        self.driver = driver
        self.options: tuple[str, ...] = ()  # more words before the command, with a driver only
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("COWSHED_")}
        self.env["HOME"] = str(folder)

    def words(self, *words: str) -> list[str]:
        chosen = ["--driver", self.driver, *self.options] if self.driver else []
        return [self.command, "--root", str(self.root), "--run-root", str(self.run_root), *chosen, *words]

    def __call__(self, *words: str, feed: bytes | None = None, env: dict | None = None, timeout: float = 120):
        return subprocess.run(
            self.words(*words),
            input=feed,
            stdin=subprocess.DEVNULL if feed is None else None,
            capture_output=True,
            env={**self.env, **(env or {})},
            timeout=timeout * SLOWDOWN,
        )

    def ok(self, *words: str, feed: bytes | None = None, env: dict | None = None, status: int = 0) -> str:
        done = self(*words, feed=feed, env=env)
        assert done.returncode == status, (words, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout.decode()

    def spawn(self, *words: str, **options) -> subprocess.Popen:
        return subprocess.Popen(self.words(*words), env={**self.env, **options.pop("env", {})}, **options)

    def names(self) -> list[str]:
        return self.ok("ps", "-a", "--format", "{{.Names}}").split()

    def processes(self) -> list[int]:
        """Every process of this store: its run directory stands in their command line, or a container's cgroup."""
        found = []
        mark = str(self.run_root).encode()
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                if mark in Path(path).read_bytes():
                    found.append(int(path.split("/")[2]))
            except OSError:
                continue
        return found

    def children(self) -> list[int]:
        """Those of them that another of them has started: monitors, what they do, and never the zygote."""
        all_ = self.processes()
        found = []
        for pid in all_:
            try:
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent in all_:
                found.append(pid)
        return found

    def run_directory(self) -> str:
        (name,) = [name for name in os.listdir(self.run_root) if os.path.isdir(self.run_root / name / "c")]
        return f"{self.run_root}/{name}"

    def close(self) -> None:
        for name in self("ps", "-aq", "--no-trunc").stdout.decode().split():
            self("rm", "-f", name)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 10 * SLOWDOWN
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def assert_clean(self) -> None:
        """No mount of the store in any namespace, no cgroup, no process of a container."""
        root = str(self.root).encode()
        for path in glob.glob("/proc/[0-9]*/mountinfo"):
            try:
                assert root not in Path(path).read_bytes(), f"a mount is left: {path}"
            except OSError:
                continue


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    with Registry(str(tmp_path_factory.mktemp("registry"))) as it:
        yield it


@pytest.fixture(scope="session")
def greeting_image():
    """Three layers: a shell, files, and a whiteout above them."""
    layers = [
        busybox_layer(),
        LayerTar().dir("srv").file("srv/one", "one\n").file("srv/two", "two\n").bytes(),
        LayerTar().whiteout("srv/two").file("srv/three", "three\n").bytes(),
    ]
    return Image(layers, {"WorkingDir": "/srv", "Env": ["PATH=/bin", "GREETING=hello"]})


@pytest.fixture(scope="session")
def greeting(registry, greeting_image):
    return registry.push(greeting_image, "test/greeting")


@pytest.fixture(scope="session")
def greeting_archive(greeting, greeting_image, tmp_path_factory):
    """The same image, with the same name, as a tar file of an OCI layout."""
    folder = tmp_path_factory.mktemp("archive")
    greeting_image.write_layout(f"{folder}/layout", greeting)
    with tarfile.open(f"{folder}/image.tar", "w") as archive:
        archive.add(f"{folder}/layout", ".")
    return folder / "image.tar"


@pytest.fixture
def quick(tmp_path):
    """A temporary directory in memory, if there is one: the suite syncs its stores thousands of times."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tmp_path
    with tempfile.TemporaryDirectory(prefix="quick-", dir=memory) as folder:
        yield folder


@pytest.fixture(scope="session")
def engine_of():
    """For tests that run another command than the installed one: Engine(folder, driver, command)."""
    return Engine


@pytest.fixture(scope="session")
def engine_on():
    """For tests of further drivers: `with engine_on(where, folder) as engine:` on a driver, or DRIVER-FILESYSTEM. Skips
    the test, and says why, where this machine cannot have it."""
    return _engine_on


@contextlib.contextmanager
def _engine_on(where: str, folder: Path) -> Iterator[Engine]:
    with contextlib.ExitStack() as stack:
        try:
            it = stack.enter_context(place(where, folder))
        except NotHere as reason:
            pytest.skip(f"{where} was not run: {reason}")
        engine = Engine(folder, it.driver, it.command)
        engine.root, engine.options = Path(it.root) / "store", it.words
        listed = {d["Name"]: d for d in json.loads(engine.ok("driver", "why", "--format", "json"))["Drivers"]}
        if it.driver not in listed:
            pytest.skip(f"{where} was not run: the driver is not installed")
        if listed[it.driver]["Verdict"] == "unusable":
            pytest.skip(f"{where} was not run: {listed[it.driver]['Reasons'][0]['Text']}")
        yield engine
        engine.close()
        engine.assert_clean()
        if leftovers.mounts(str(engine.root)):
            _destroy(engine, it.driver)
        assert leftovers.mounts(str(engine.root)) == []


def _destroy(engine: Engine, name: str) -> None:
    """Take a driver's store away, and with it what stands as long as that does: a pool and its loop devices."""
    from cowshed.layers.host import EngineHost
    from cowshed.storage import options, registry

    with contextlib.closing(sqlite3.connect(engine.root / "db.sqlite")) as database:
        store, fixed = database.execute("select store, options from drivers where name = ?", (name,)).fetchone()
    plugin, _ = registry.load(name)
    chosen = {**options.check(plugin, {}), **json.loads(fixed)}
    plugin.destroy(f"{engine.root}/drivers/{name}", chosen, EngineHost(), store=store)


@pytest.fixture(params=["overlay", "copy"])
def driver(request):
    return request.param


@pytest.fixture
def engine(tmp_path, driver):
    it = Engine(tmp_path, driver)
    yield it
    it.close()
    it.assert_clean()


@pytest.fixture(scope="module")
def shop(tmp_path_factory, greeting):
    """One store with the image for all tests of a module; what a test leaves in it is removed."""
    it = Engine(tmp_path_factory.mktemp("shop"), "overlay")
    it.ok("pull", "-q", greeting)
    it.image = greeting
    yield it
    it.close()
    it.assert_clean()


@pytest.fixture
def pulled(engine, greeting):
    engine.ok("pull", "-q", greeting)
    engine.image = greeting
    return engine
