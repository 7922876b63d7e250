"""Podman, docker and containerd of a Debian release, run with our runtime and nothing of this host changed.

They were unpacked by tools/peers. They see this host's root with theirs laid over it, in a mount namespace of their
own: what they write is in memory and goes with it. Containers have no network, so that no bridge or firewall rule is
made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
RUNTIME = TOP / ".venv/bin/cowshed-runtime"
_SETUP = """
place=$1 tree=$2 top=$3 root=$1/root
mount -t tmpfs -o mode=700 peers "$place"
mkdir "$root" "$root"/{usr,etc,var,proc,sys,dev,run,tmp,root,peers}
mount --bind "$root" "$root"
for folder in usr etc; do
    mkdir "$place/$folder"{,.work}
    layers="lowerdir=$tree/$folder:/$folder,upperdir=$place/$folder,workdir=$place/$folder.work"
    mount -t overlay -o "$layers" overlay "$root/$folder"
done
for folder in bin sbin lib lib64; do [ ! -L "/$folder" ] || ln -s "usr/$folder" "$root/$folder"; done
cd "$root"
mount --rbind /proc proc; mount --rbind /sys sys; mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run; mount -t tmpfs tmp tmp
mkdir -p "$root$top" var/tmp var/lib; mount --rbind "$top" "$root$top"
mkdir old; pivot_root . old; umount -l old; rmdir old
echo up; exec chroot . sleep infinity
"""
_CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
oom_score_adj = 0
log_driver = "k8s-file"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "cowshed"
runtime_supports_json = ["cowshed", "runc", "crun"]
[engine.runtimes]
cowshed = ["{runtime}"]
"""
_STORAGE = """
[storage]
driver = "{driver}"
graphroot = "/peers/podman"
runroot = "/run/podman"
"""

_PLAIN = """
cd /home/plain 2> /dev/null || {
    echo "plain:x:$1:$1::/home/plain:/bin/sh" >> /etc/passwd
    echo "plain:x:$1:" >> /etc/group
    echo "plain:700000:65536" | tee -a /etc/subuid >> /etc/subgid
    mkdir -p /home/plain/run /home/plain/.config/containers
    printf '[storage]\\ndriver = "vfs"\\n' > /home/plain/.config/containers/storage.conf
    chown -R "$1:$1" /home/plain; chmod 700 /home/plain/run; chmod 1777 /tmp /var/tmp; chmod 755 /peers
}
"""
_PLAIN_ID = "3917"

_CONTAINERD = """
version = 2
root = "/peers/containerd"
state = "/run/containerd-ours"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
address = "/run/ours.sock"
"""


def available(release: str) -> Path | None:
    """Where tools/peers has unpacked a release, if it has."""
    tree = TOP / "build/peers" / release
    return tree if (tree / ".complete").exists() else None


class Peers:
    """The mount namespace of a release's engines; close() ends everything that was started in it."""

    def __init__(self, tree: Path, place: Path, runtime: Path = RUNTIME) -> None:
        place.mkdir()
        self.runtime, self.daemons = runtime, {}
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-euc", _SETUP, "up",
             str(place), str(tree), str(TOP)],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.holder.stdout.readline() == "up\n"
        self.root = f"/proc/{self.holder.pid}/root"
        self.write("/etc/containers/containers.conf", _CONTAINERS.format(runtime=runtime))
        self.write("/etc/containers/storage.conf", _STORAGE.format(driver="vfs"))
        self.write("/etc/containers/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}')

    def write(self, path: str, text: str) -> None:
        file = Path(self.root + path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def put(self, path: str, data: bytes) -> None:
        Path(self.root + path).write_bytes(data)

    def words(self, *words: str) -> list[str]:
        pid = self.holder.pid
        return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--root=/proc/{pid}/root", f"--wd=/proc/{pid}/root",
                "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *words]  # fmt: skip

    def run(self, *words: str, status: int | None = 0, timeout: float = 120, **options) -> str:
        """Run a command inside; its output. status: what it has to end with, None for anything."""
        done = subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **options
        )
        assert status in (None, done.returncode), f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        self.err = done.stderr
        return done.stdout

    def rootless(self, *words: str, **options) -> str:
        """Run a command as a user with a home and subordinate ids."""
        self.run("sh", "-euc", _PLAIN, "sh", _PLAIN_ID)
        user = ("setpriv", "--reuid", _PLAIN_ID, "--regid", _PLAIN_ID, "--clear-groups")
        return self.run(*user, "env", "HOME=/home/plain", "XDG_RUNTIME_DIR=/home/plain/run", *words, **options)

    def daemon(self, name: str, *words: str, ready: tuple[str, ...]) -> None:
        """Start a daemon and wait until a command that asks it succeeds."""
        log = open(f"{self.root}/peers/{name}.log", "w")
        process = subprocess.Popen(self.words(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self.daemons[name] = process
        until = time.monotonic() + 90
        while subprocess.run(self.words(*ready), capture_output=True, check=False).returncode:
            assert process.poll() is None, self.log(name)
            assert time.monotonic() < until, self.log(name)
            time.sleep(0.1)

    def docker(self, *words: str, **options) -> str:
        return self.run("docker", "-H", "unix:///run/docker.sock", *words, **options)

    def start_docker(self) -> None:
        conf = {
            "data-root": "/peers/docker", "exec-root": "/run/docker", "pidfile": "/run/docker.pid",
            "hosts": ["unix:///run/docker.sock"], "bridge": "none", "iptables": False, "ip-forward": False,
            "ip-masq": False, "ip6tables": False, "storage-driver": "vfs", "userland-proxy": False,
            "runtimes": {"cowshed": {"path": str(self.runtime)}}, "default-runtime": "cowshed",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        }  # fmt: skip
        self.write("/etc/docker/daemon.json", json.dumps(conf))
        self.daemon("docker", "dockerd", ready=("docker", "-H", "unix:///run/docker.sock", "version"))

    def ctr(self, *words: str, **options) -> str:
        return self.run("ctr", "-a", "/run/ours.sock", *words, **options)

    def start_containerd(self) -> None:
        self.write("/etc/containerd/ours.toml", _CONTAINERD)
        self.daemon("containerd", "containerd", "--config", "/etc/containerd/ours.toml",
                    ready=("ctr", "-a", "/run/ours.sock", "version"))  # fmt: skip

    def log(self, name: str) -> str:
        return Path(f"{self.root}/peers/{name}.log").read_text()

    def inside(self) -> list[int]:
        """The processes whose root is ours: engines, their helpers, not what is in containers."""
        mine, found = os.readlink(f"/proc/{self.holder.pid}/ns/mnt"), []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdecimal() and os.readlink(f"/proc/{name}/ns/mnt") == mine:
                    found.append(int(name))
        return found

    def close(self) -> None:
        for process in self.daemons.values():
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.inside():
            if pid != self.holder.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        self.holder.stdout.close()
        self.holder.kill()
        self.holder.wait()


def remove(place: Path) -> None:
    shutil.rmtree(place)
