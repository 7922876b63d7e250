"""The rows: what is measured, against whom, what is aimed at; and what comes of the samples."""

from __future__ import annotations

import statistics
from typing import Any

# kind: what `aim` bounds.  ratio: ours / theirs, from above.  most, least: ours itself.  "": nothing is aimed at.
ROWS: list[dict[str, Any]] = [
    {"row": name, "peer": peer, "unit": unit, "kind": kind, "aim": aim}
    for name, peer, unit, kind, aim in [
        ("run --rm true", "podman", "ms", "ratio", 0.4),
        ("run -d", "podman", "ms", "ratio", 0.35),
        ("start", "podman", "ms", "ratio", 0.35),
        ("exec true", "podman", "ms", "ratio", 0.3),
        ("rm -f of a running one", "podman", "ms", "ratio", 0.3),
        ("create", "podman", "ms", "ratio", 0.5),
        ("run -d, 50 in sequence", "podman", "ms", "ratio", 0.4),
        ("run -d, 20 at once", "podman", "ms", "ratio", 0.4),
        ("run -d, podman with its network", "podman", "ms", "ratio", 0.35),
        ("start, podman with its network", "podman", "ms", "ratio", 0.35),
        ("run -d, 50 in sequence, podman with its network", "podman", "ms", "ratio", 0.4),
        ("run -d, 20 at once, podman with its network", "podman", "ms", "ratio", 0.4),
        ("ps -a", "docker", "ms", "ratio", 0.5),
        ("images", "docker", "ms", "ratio", 0.5),
        ("inspect", "docker", "ms", "ratio", 0.5),
        ("pull big (101 MB, gzip), durability none", "containerd", "ms", "ratio", 0.5),
        ("pull big, durability commit", "containerd", "ms", "", None),
        ("pull big-zstd (91 MB), durability none", "containerd", "ms", "ratio", 0.7),
        ("pull big-zstd, durability commit", "containerd", "ms", "", None),
        ("pull many (30,000 files), durability none", "containerd", "ms", "ratio", 0.8),
        ("pull many, durability commit", "containerd", "ms", "", None),
        ("pull layers (12), durability none", "containerd", "ms", "ratio", 0.9),
        ("pull layers, durability commit", "containerd", "ms", "", None),
        ("pull, peak memory", "podman", "MB", "most", 80),
        ("commit of 1,000 files", "podman", "ms", "ratio", 0.5),
        ("load of a docker archive (268 MB), durability none", "podman", "ms", "ratio", 0.5),
        ("load of a docker archive, durability commit", "podman", "ms", "", None),
        ("load of a docker archive, processor time", "podman", "ms", "ratio", 0.5),
        ("save of a docker archive (268 MB)", "podman", "ms", "ratio", 0.5),
        ("save of a docker archive, processor time", "podman", "ms", "ratio", 0.5),
        ("save of an OCI archive (268 MB)", "podman", "ms", "ratio", 0.5),
        ("save of an OCI archive, processor time", "podman", "ms", "ratio", 0.5),
        ("save, peak memory", "podman", "MB", "most", 80),
        ("push big (101 MB)", "skopeo", "ms", "ratio", 0.7),
        ("push, processor time", "skopeo", "ms", "ratio", 0.7),
        ("push, peak memory", "skopeo", "MB", "most", 80),
        ("push big (101 MB) to our registry", "skopeo", "ms", "ratio", 0.7),
        ("push to our registry, processor time", "skopeo", "ms", "ratio", 0.7),
        ("push to our registry, peak memory", "skopeo", "MB", "most", 80),
        ("output of 200 MB, attached", "podman", "MB/s", "least", 400),
        ("logs of 200 MB", "podman", "MB/s", "least", 400),
        ("memory of an idle container (PSS)", "podman", "MB", "most", 0.5),
        ("standing processes (PSS)", "docker", "MB", "most", 12),
        ("run --rm in a store of 10,000 layers, 1,000 containers", "empty store", "ms", "ratio", 1.3),
        ("ps -a of 1,000", "docker", "ms", "ratio", 1.0),
        ("run --rm on a chain of 500 layers", "one layer", "ms", "", None),
    ]
]


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def judge(row: dict[str, Any], samples: dict[str, list[float]]) -> dict[str, Any]:
    """A row with its medians, ratio and verdict."""
    ours, theirs = samples.get("cowshed", []), samples.get(row["peer"], [])
    result = {**row, "samples": {"ours": ours, "theirs": theirs}}
    mine = statistics.median(ours) if ours else None
    other = statistics.median(theirs) if theirs else None
    ratio = mine / other if mine is not None and other else None
    verdict = "–"
    if mine is None:
        verdict = "not measured"
    elif row["kind"] == "ratio":
        verdict = "no peer" if ratio is None else "met" if ratio <= row["aim"] else "missed"
    elif row["kind"]:
        verdict = "met" if (mine <= row["aim"]) == (row["kind"] == "most") or mine == row["aim"] else "missed"
    return {**result, "ours": mine, "theirs": other, "ratio": ratio, "verdict": verdict}


def _cell(median: float | None, samples: list[float], unit: str) -> str:
    if median is None:
        return "–"
    spread = f" ({number(min(samples))}…{number(max(samples))})" if len(samples) > 1 else ""
    return f"**{number(median)}** {unit}{spread}"


def markdown(rows: list[dict[str, Any]], head: list[str], failures: list[str]) -> str:
    lines = [*[f"- {line}" for line in head], ""]
    lines += ["| operation | ours | peer | ratio | aim | verdict | runs |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        aim = {"ratio": "≤ {} of it", "most": "≤ {} {}", "least": "≥ {} {}", "": "–"}[row["kind"]]
        ours, theirs = row["samples"]["ours"], row["samples"]["theirs"]
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        peer = f"{row['peer']} {_cell(row['theirs'], theirs, row['unit'])}" if theirs else "–"
        lines.append(
            f"| {row['row']} | {_cell(row['ours'], ours, row['unit'])} | {peer} | {ratio} | "
            f"{aim.format(row['aim'], row['unit'])} | {row['verdict']} | {len(ours)}/{len(theirs)} |"
        )
    return "\n".join([*lines, "", *[f"- failed: {failure}" for failure in failures]]) + "\n"
