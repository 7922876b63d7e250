"""Debian's archive through apt, with lists and settings of our own: nothing of the machine's changes.

The mirror is the one that the machine's apt names, and so are proxies.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from cowshed_vm.cache import Cache
from cowshed_vm.errors import VmError
from cowshed_vm.programs import KEYRING, run

SUITE = "bookworm"
FRESH = 86400.0  # seconds for which package lists serve


class Archive:
    def __init__(self, cache: Cache) -> None:
        self.folder = cache.path / "apt"
        for name in ("lists/partial", "archives/partial", "debs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        self.sources = _sources()
        self.settings = self.folder / "network.conf"
        with cache.lock("apt"):
            self._configure()

    def _configure(self) -> None:
        backports = self.sources[0].replace(f" {SUITE} ", f" {SUITE}-backports ")
        wanted = "\n".join([*self.sources, backports]) + "\n"
        listed = self.folder / "sources.list"
        known = listed.exists() and listed.read_text() == wanted
        listed.write_text(wanted)
        # What apt is told of the network here: proxies, retries, clocks that are wrong.
        dump = run("apt-config", "dump").splitlines()
        self.settings.write_text(
            "".join(f"{line}\n" for line in dump if re.match("Acquire::(https?::|Check-Valid)", line))
        )
        stamp = self.folder / "updated"
        if not known or not stamp.exists() or stamp.stat().st_mtime < time.time() - FRESH:
            self._apt("apt-get", "-qq", "update")
            stamp.touch()

    def _apt(self, program: str, *words: str, cwd: Path | None = None) -> str:
        options = {
            "Dir::Etc::sourcelist": f"{self.folder}/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": f"{self.folder}/lists",
            "Dir::State::status": f"{self.folder}/status",
            "Dir::Cache": f"{self.folder}",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return run(program, *settings, *words, cwd=cwd)

    def kernels(self, series: str) -> list[str]:
        """The names of the image packages of a series ("6.1"), newest last."""
        names = self._apt("apt-cache", "pkgnames", f"linux-image-{series}.").split()
        found = [name for name in names if name.endswith("-cloud-amd64")]
        if not found:
            raise VmError(
                f"no kernel {series}: no package linux-image-{series}.*-cloud-amd64 in {SUITE} or its backports"
            )
        return sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    def version(self, package: str) -> str:
        """The version that would be fetched."""
        text = self._apt("apt-cache", "show", "--no-all-versions", package)
        found = re.search(r"^Version: (\S+)$", text, re.MULTILINE)
        if found is None:
            raise VmError(f"package {package} is not in {SUITE} or its backports")
        return found[1]

    def unpack(self, package: str, target: Path) -> None:
        """The files of a package; nothing of it is run."""
        fetched = target.parent / f"{target.name}.debs"
        fetched.mkdir(exist_ok=True)
        self._apt("apt-get", "-qq", "download", package, cwd=fetched)
        for deb in fetched.glob(f"{package}_*.deb"):
            run("dpkg", "-x", deb, target)
            deb.unlink()


def _sources() -> list[str]:
    """Lines for sources.list. Works before the machine's own first `apt-get update`."""
    listed = run("apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)")
    targets = [line.split() for line in listed.splitlines()]
    main = next((uri for uri, release, part in targets if part == "main" and "-" not in release), None)
    if main is None:
        raise VmError("apt's sources name no Debian archive (deb … SUITE main)")
    options = f"[arch=amd64 signed-by={KEYRING}]"
    lines = [f"deb {options} {main} {SUITE} main contrib", f"deb {options} {main} {SUITE}-updates main"]
    security = next((uri for uri, release, _ in targets if release.endswith("-security")), None)
    if security is not None:
        lines.append(f"deb {options} {security} {SUITE}-security main contrib")
    return lines
