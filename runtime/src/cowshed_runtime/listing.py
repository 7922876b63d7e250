"""Processes as ps(1) shows them: of the host's table the lines that are of some pids."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def table(pids: Collection[int], options: Sequence[str]) -> str:
    """Heading and lines. options: those of ps(1), -ef without any. ValueError says why there is no table."""
    import subprocess

    try:
        done = subprocess.run(["ps", *(options or ["-ef"])], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError("the program ps is not installed (Debian: procps)") from None
    if done.returncode:
        raise ValueError(f"ps: {' '.join((done.stderr or done.stdout).split())}")
    lines = done.stdout.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise ValueError("ps was told to print no column PID, by which the container's processes are known")
    at, wanted = titles.index("PID"), {str(pid) for pid in pids}
    shown = [lines[0], *(line for line in lines[1:] if line.split()[at : at + 1] and line.split()[at] in wanted)]
    return "\n".join(shown) + "\n"
