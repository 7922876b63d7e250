"""The configuration that is written for a container is one that other OCI runtimes take, with the same outcome."""

import json
import shutil
import subprocess

import pytest

SCRIPT = (
    "hostname; id -u; id -G; pwd; echo $A; ls /in; grep -E 'CapBnd|Seccomp:|NoNewPrivs' /proc/self/status; ulimit -n;"
    "touch /srv/x 2>&1; ls -d /dev/shm /dev/mqueue /dev/pts; cat /proc/mounts | grep -c ' /t '; exit 7"
)
OPTIONS = (
    "-m 64m --cpus 1 --pids-limit 50 --ulimit nofile=100:200 --tmpfs /t:size=1m -v /anonymous --hostname barn -u www "
    "-e A=1 -w /srv --device /dev/loop-control --cap-add sys_ptrace --cap-drop net_raw --init "
    "--security-opt no-new-privileges --shm-size 1m --label a=b"
).split()


@pytest.fixture
def made(shop, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("")
    options = [*OPTIONS, "-v", f"{tmp_path}/in:/in:ro"]
    id_ = shop.ok("create", "--driver", "copy", *options, shop.image, "sh", "-c", SCRIPT).strip()
    yield id_
    shop.ok("rm", "-fv", id_)


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_another_runtime_runs_the_bundle(shop, made, tmp_path, runtime):
    if not shutil.which(runtime):
        pytest.skip(f"needs {runtime} (Debian: {runtime})")
    (told,) = json.loads(shop.ok("inspect", made))
    with open(told["OCIConfigPath"]) as f:
        config = json.load(f)
    assert config["ociVersion"] == "1.2.0"
    config["ociVersion"] = "1.0.2"  # of which all is, but some versions refuse a later number
    config["root"]["path"] = f"{told['GraphDriver']['Data']['Root']}/active/{told['GraphDriver']['Data']['Layer']}/root"
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = [runtime, "--root", str(tmp_path / "state"), "run", "--bundle", str(tmp_path), made[:12]]
    theirs = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    if b"hybrid mode not supported" in theirs.stderr:
        pytest.skip(f"this host's control groups are of both versions, which {runtime} does not support")
    ours = shop("start", "-a", made)
    assert (theirs.returncode, theirs.stderr) == (7, b"")
    assert theirs.stdout.decode() == ours.stdout.decode()
    assert ours.returncode == 7
