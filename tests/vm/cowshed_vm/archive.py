"""Debian's archive through apt, with lists and settings of our own: nothing of the machine's changes.

The mirror is the one that the machine's apt names, and so are proxies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from cowshed_vm.cache import Cache
from cowshed_vm.errors import VmError
from cowshed_vm.programs import KEYRING, run

SUITE = "bookworm"
FRESH = 86400.0  # seconds for which package lists serve


class Archive:
    """The package lists are fetched once a day, and what they answered is kept until then: apt takes seconds to read
    them."""

    def __init__(self, cache: Cache) -> None:
        self.folder = cache.path / "apt"
        self.settings = self.folder / "network.conf"
        self._listed, self._answers = self.folder / "sources.list", self.folder / "answers.json"
        with cache.lock("apt"):
            if not self._answers.exists() or self._answers.stat().st_mtime < time.time() - FRESH:
                self._update()
            self._known: dict[str, str] = json.loads(self._answers.read_text())
        self.sources = self._listed.read_text().splitlines()[:-1]  # the last are the backports, for kernels alone

    def _update(self) -> None:
        for name in ("lists/partial", "archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        sources = _sources()
        backports = sources[0].replace(f" {SUITE} ", f" {SUITE}-backports ")
        self._listed.write_text("\n".join([*sources, backports]) + "\n")
        # What apt is told of the network here: proxies, retries, clocks that are wrong.
        dump = run("apt-config", "dump").splitlines()
        network = [f"{line}\n" for line in dump if re.match("Acquire::(https?::|Check-Valid)", line)]
        self.settings.write_text("".join(network))
        self._apt("apt-get", "-qq", "update")
        self._answers.write_text("{}")

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

    def _answer(self, question: str, ask: Callable[[], str]) -> str:
        if question not in self._known:
            self._known[question] = ask()
            new = self.folder / f"answers.{os.getpid()}"
            new.write_text(json.dumps(self._known))
            shutil.copystat(self._answers, new)  # the age is that of the lists
            new.rename(self._answers)
        return self._known[question]

    def kernel(self, series: str) -> str:
        """The name of the newest image package of a series ("6.1")."""

        def ask() -> str:
            names = self._apt("apt-cache", "pkgnames", f"linux-image-{series}.").split()
            found = [name for name in names if name.endswith("-cloud-amd64")]
            if not found:
                raise VmError(
                    f"no kernel {series}: {SUITE} and its backports have no linux-image-{series}.*-cloud-amd64"
                )
            return max(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

        return self._answer(f"kernel {series}", ask)

    def version(self, package: str) -> str:
        """The version that would be fetched."""

        def ask() -> str:
            text = self._apt("apt-cache", "show", "--no-all-versions", package)
            found = re.search(r"^Version: (\S+)$", text, re.MULTILINE)
            if found is None:
                raise VmError(f"package {package} is not in {SUITE} or its backports")
            return found[1]

        return self._answer(f"version {package}", ask)

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
