"""The table on the screen and the JSON in ``results/``."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any

from bench.harness import BENCH, PEERS, SATURATED, Result, Row, Settings

RESULTS = BENCH / "results"
LIBRARIES = (
    "session-server",
    "aiohttp",
    "cryptography",
    "google-crc32c",
    "msgspec",
    "pyopenssl",
    "uvloop",
    "websockets",
)
HEADS = ("what", "ours", "peer", "ratio", "spread", "goal", "reached", "others")


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped.

    >>> number(1234567.0), number(0.8412), number(12.25), number(None)
    ('1,234,567', '0.841', '12.2', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def summary(result: Result, row: Row) -> dict[str, Any]:
    """One row of the table as data."""
    question = result.question
    who = row.who or question.ours.name
    shown = {other.who for other in question.rows if other.figure == row.figure}  # they have a row of their own
    ours = result.median(who, row.figure)
    ratios = result.ratios(who, row.figure, row.against) if row.compare else []
    peer = row.against or (question.baseline.name if question.baseline else None)
    ratio = statistics.median(ratios) if ratios else None
    right = not any(run.faults for run in result.runs if run.who == who)
    undisturbed = row.steady or all(disturbed(result, name) <= 0.5 for name in (who, peer) if name)
    reached = row.reached(ours, ratio) if ours is not None and undisturbed else None
    return {
        "question": question.name,
        "what": row.what,
        "unit": row.unit,
        "ours": ours,
        "peer": result.median(peer, row.figure) if peer else None,
        "peer_name": peer,
        "others": {
            other.name: value
            for other in question.others
            if other.name not in shown and (value := result.median(other.name, row.figure)) is not None
        },
        "ratio": ratio,
        "ratios": ratios,
        "goal": row.goal_text(),
        "reached": reached and right if reached is not None else None,
    }


def table(results: Sequence[Result]) -> str:
    """The plain table, a block per question."""
    lines: list[tuple[str, ...]] = []
    for result in results:
        lines.append((result.question.title,))
        for row in result.question.rows:
            seen = summary(result, row)
            ratios = seen["ratios"]
            lines.append(
                (
                    f"  {row.what}{', ' + row.unit if row.unit else ''}",
                    number(seen["ours"]),
                    number(seen["peer"]),
                    f"{seen['ratio']:.2f}×" if seen["ratio"] is not None else "",
                    f"{min(ratios):.2f}–{max(ratios):.2f}" if ratios else "",
                    seen["goal"],
                    {True: "yes", False: "NO", None: "?" if row.goal is not None else ""}[seen["reached"]],
                    ", ".join(f"{name} {number(value)}" for name, value in seen["others"].items()),
                )
            )
        lines.append((f"    {conditions(result)}",))
    body = [line for line in lines if len(line) > 1]
    widths = [max(len(line[i]) for line in [HEADS, *body]) for i in range(len(HEADS))]
    out = []
    for line in [HEADS, *lines]:
        if len(line) == 1:
            out.append(line[0])
        else:
            cells = [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
            out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def disturbed(result: Result, who: str) -> float:
    """The share of its runs that others disturbed."""
    runs = [run for run in result.runs if run.who == who]
    return sum(run.disturbance > 1 for run in runs) / len(runs) if runs else 0.0


def conditions(result: Result) -> str:
    """What to know before believing a row: other load, the generator's share, faults."""
    runs = result.runs
    foreign = [run.figures.get("foreign", 0.0) for run in runs]
    others = [run.figures.get("foreign_generator", 0.0) for run in runs]
    share = max(run.figures.get("generator_share", 0.0) for run in runs)
    parts = [f"foreign load on the server's core {max(foreign):.0%}, on the generator's {max(others):.0%}"]
    parts.append(f"generator at most {share:.0%} of its core")
    bad = sum(run.disturbance > 1 for run in runs)
    if bad:
        parts.append(f"DISTURBED: {bad} of {len(runs)} runs")
    if generator_is_the_limit(result):
        parts.append("GENERATOR MAY BE THE LIMIT")
    faults = sorted({f"{run.who}: {fault}" for run in runs for fault in run.faults})
    if faults:
        parts.append("FAULTS: " + ", ".join(faults))
    return "; ".join(parts)


def generator_is_the_limit(result: Result) -> bool:
    shares = (run.figures.get("generator_share", 0.0) for run in result.runs)
    return not result.question.loads_generator and max(shares) >= SATURATED


def commit() -> str:
    """Short hash, `-dirty` if the server's source differs from it, `none` outside a repository."""
    folder = BENCH.parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    if head.returncode:
        return "none"
    changes = subprocess.run(
        ["git", "status", "--porcelain", "--", "src", "pyproject.toml"], cwd=folder, capture_output=True, text=True
    )
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def machine() -> dict[str, Any]:
    """What the figures depend on, without names of hosts or people."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    peer = json.loads((PEERS / "package.json").read_text())
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "node": node,
        "peers": peer["dependencies"],
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def unused(name: str) -> Path:
    """A file of this name, or with a number behind it: two runs of one commit are two results."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(path for path in (RESULTS / f"{one}.json" for one in names) if not path.exists())


def save(results: Sequence[Result], settings: Settings, cores: tuple[int, int], limits: dict[str, int]) -> Path:
    """Writes everything, raw runs included; returns where."""
    now = datetime.datetime.now(datetime.UTC)
    at = commit()
    RESULTS.mkdir(exist_ok=True)
    path = unused(f"{now:%Y-%m-%d}-{at}{'-quick' if settings.quick else ''}")
    data = {
        "date": now.isoformat(timespec="seconds"),
        "commit": at,
        "settings": asdict(settings),
        "machine": machine(),
        "cores": {"server": cores[0], "generator": cores[1]},
        "limits": limits,
        "questions": [
            {
                "name": result.question.name,
                "title": result.question.title,
                "conditions": conditions(result),
                "generator_is_the_limit": generator_is_the_limit(result),
                "rows": [summary(result, row) for row in result.question.rows],
                "runs": [
                    {
                        "who": run.who,
                        "round": run.round,
                        "repeated": run.repeated,
                        "disturbed": run.disturbance > 1,
                        "figures": {name: round(value, 6) for name, value in run.figures.items()},
                    }
                    for run in result.runs
                ],
            }
            for result in results
        ],
    }
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return path
