"""Starts servers, loads them, compares them. What is asked of them lies in ``questions``.

A *question* is measured on several *contestants* in turn, the baseline first and again last (A B C A B C … A), each run
on a fresh server. A ratio is taken between a run and the mean of the baseline runs right before and after it, so that a
drift of the machine cancels; reported is the median.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
BUILD = BENCH / ".build"
PEERS = BENCH / "peers"
GENERATOR = BUILD / "generator"
UDP = BUILD / "udp"  # the generator of the data channel rows
SOURCES = {  # program → what it is compiled of, and with
    GENERATOR: ("generator.c",),
    UDP: ("udp.c", "peer.c", "-lssl", "-lcrypto"),
}

FOREIGN = 0.12  # share of a core used by others, above which a run is repeated
LATE = 0.5  # ms, p99: an open loop that sends later than this was itself held up
SATURATED = 0.97  # share of its core, above which the generator may be the limit
READY = 20.0  # seconds a server may take until its port answers

Figures = dict[str, float]


class BenchError(Exception):
    """The bench could not be run; the text says why, for people."""


@dataclass(frozen=True)
class Settings:
    """How long and how often."""

    quick: bool = False
    repeats: int = 5
    warm: float = 0.3  # seconds
    measure: float = 1.2  # seconds
    poll: bool = False  # clients that never sleep
    retries: int = 20  # runs that may be repeated because others used the core, in all


@dataclass(frozen=True)
class Contestant:
    """One kind of server. ``command`` gets the port it shall listen on (127.0.0.1)."""

    name: str
    command: Callable[[int], list[str]]


@dataclass
class Server:
    """A contestant that runs, pinned to the first core."""

    contestant: Contestant
    port: int
    process: subprocess.Popen[bytes]
    cores: tuple[int, int]

    @property
    def name(self) -> str:
        return self.contestant.name

    def rss(self) -> int:
        """Resident memory in bytes, children included."""
        return sum(_rss(pid) for pid in family(self.process.pid))


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of a question, and the goal for ours."""

    figure: str
    what: str
    unit: str
    goal: float | None = None  # None: for information
    ratio: bool = True  # the goal is a ratio to the baseline, else in `unit`
    at_least: bool = True  # the goal is a floor, else a ceiling
    compare: bool = True  # show the ratio to the baseline (it did the same work)
    steady: bool = False  # whatever else runs on the machine
    against: str | None = None  # the ratio is to this contestant, not to the baseline
    who: str | None = None  # the figure is of this contestant, not of ours

    def reached(self, ours: float, ratio: float | None) -> bool | None:
        """Whether the goal is met; None where there is none or nothing to compare with."""
        seen = ratio if self.ratio else ours
        if self.goal is None or seen is None:
            return None
        return seen >= self.goal if self.at_least else seen <= self.goal

    def goal_text(self) -> str:
        if self.goal is None:
            return ""
        return f"{'≥' if self.at_least else '≤'} {self.goal:g}{'×' if self.ratio else ' ' + self.unit}"


@dataclass(frozen=True)
class Question:
    """What is measured, on whom. ``measure`` gets a fresh server and returns figures by name."""

    name: str
    title: str
    ours: Contestant
    measure: Callable[[Server, Settings], Figures]
    rows: tuple[Row, ...]
    baseline: Contestant | None = None
    others: tuple[Contestant, ...] = ()  # for information, left out of a quick run if no row is `against` it
    repeats: int | None = None  # instead of those of the settings, if fewer
    loads_generator: bool = False  # the generator is meant to be the limit
    program: Path = GENERATOR

    def contestants(self, quick: bool) -> list[Contestant]:
        """All but the baseline, in the order of their turns."""
        needed = {row.against for row in self.rows} | {row.who for row in self.rows}
        return [self.ours, *(other for other in self.others if not quick or other.name in needed)]


@dataclass
class Run:
    """One measurement of one contestant, as it goes into the JSON."""

    who: str
    round: int
    figures: Figures
    repeated: int = 0  # how often it was thrown away before for foreign load

    @property
    def disturbance(self) -> float:
        """1 = just tolerable."""
        figures = self.figures
        foreign = max(figures.get("foreign", 0.0), figures.get("foreign_generator", 0.0)) / FOREIGN
        return max(foreign, figures.get("late_p99_ms", 0.0) / LATE)

    @property
    def faults(self) -> list[str]:
        """What went wrong, other than being slow."""
        wrong = ("unstamped", "failed", "closed", "stalled", "lost")
        return [f"{name} {self.figures[name]:g}" for name in wrong if self.figures.get(name)]


@dataclass
class Result:
    """All runs of one question."""

    question: Question
    runs: list[Run] = field(default_factory=list)

    def values(self, who: str, figure: str) -> list[float]:
        return [run.figures[figure] for run in self.runs if run.who == who and figure in run.figures]

    def median(self, who: str, figure: str) -> float | None:
        values = self.values(who, figure)
        return statistics.median(values) if values else None

    def ratios(self, who: str, figure: str, against: str | None = None) -> list[float]:
        """Per round: the figure over that of `against`, or over the mean of the baseline's before and after."""
        values = self.values(who, figure)
        if against is not None:
            return [value / other for value, other in zip(values, self.values(against, figure), strict=False) if other]
        if self.question.baseline is None:
            return []
        return paired_ratios(values, self.values(self.question.baseline.name, figure))


def paired_ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Value *i* over the mean of baseline *i* and *i* + 1.

    >>> paired_ratios([30.0, 20.0], [10.0, 20.0, 20.0])
    [2.0, 1.0]
    """
    means = [(before + after) / 2 for before, after in zip(baseline, baseline[1:], strict=False)]
    return [value / mean for value, mean in zip(values, means, strict=False) if mean]


# ---- preparing ----


def prepare(programs: set[Path]) -> None:
    """Compiles these generators and installs the peers, where that is not done yet."""
    if not sys.platform.startswith("linux"):
        raise BenchError("the bench needs Linux: it reads CPU times from /proc and pins processes to cores")
    for tool, why in (("cc", "to compile the load generator"), ("node", "for the peers"), ("npm", "for the peers")):
        if not shutil.which(tool):
            raise BenchError(f"'{tool}' is not on PATH; it is needed {why}")
    BUILD.mkdir(exist_ok=True)
    newest = max(source.stat().st_mtime for source in (*BENCH.glob("*.c"), *BENCH.glob("*.h")))
    for program in programs:
        if not program.exists() or program.stat().st_mtime < newest:
            _do(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), *SOURCES[program]], BENCH)
    installed = PEERS / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (PEERS / "package-lock.json").stat().st_mtime:
        _do(["npm", "ci", "--silent"], PEERS)
        installed.touch()


def _do(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"`{' '.join(command)}` failed:\n{done.stderr or done.stdout}")


def raise_file_limit() -> int:
    """As many open files as allowed, for us and our children; returns how many."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def choose_cores() -> tuple[int, int]:
    """The server's core and the generator's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("the bench needs two cores, one for the server and one for the generator")
    return cores[0], cores[1]


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Children started inside run on this core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---- processes ----


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                pids += family(int(child))
    return pids


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"no Rss in smaps_rollup of process {pid}")


def _ran(pid: int) -> float:
    """Seconds of CPU that the threads of a process have used."""
    ran = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            ran += int((task / "schedstat").read_text().split()[0])
    return ran / 1e9


def _busy(core: int) -> float:
    """Seconds since boot that a core was not idle."""
    words = next(line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _, _, irq, soft, steal = map(int, words[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(contestant: Contestant, cores: tuple[int, int]) -> Iterator[Server]:
    """A fresh server of this kind, ready; killed at the end, with what it has started."""
    port = free_port()
    log = BUILD / f"{contestant.name.replace(' ', '-')}.log"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SESSION_SERVER_") and k != "PORT"}
    try:
        with log.open("wb") as out, pinned(cores[0]):
            process = subprocess.Popen(
                contestant.command(port), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=clean, cwd=BENCH,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise BenchError(f"{contestant.name} cannot be started: {error}") from None
    try:
        _wait_until_ready(contestant, process, port, log)
        time.sleep(0.2)
        yield Server(contestant, port, process, cores)
        if process.poll() is not None:
            raise BenchError(f"{contestant.name} ended during the run, exit {process.returncode}:\n{_tail(log)}")
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(contestant: Contestant, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + READY
    while time.monotonic() < end:
        if process.poll() is not None:
            raise BenchError(f"{contestant.name} ended at once, exit {process.returncode}:\n{_tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise BenchError(f"{contestant.name} does not answer on port {port} after {READY:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


# ---- loading ----


def load(server: Server, mode: str, settings: Settings, program: Path = GENERATOR, **options: float | str) -> Figures:
    """Runs a generator on the second core and returns what it measured (see `figures`)."""
    with _generator(server, program, mode, settings, options) as generator:
        out, err = generator.communicate(timeout=settings.warm + settings.measure + 60)
    if generator.returncode:
        raise BenchError(f"{server.name}: {err.strip()}")
    return figures(json.loads(out))


def hold(
    server: Server, mode: str, count: int, settings: Settings, program: Path = GENERATOR, **options: float | str
) -> Figures:
    """Opens idle connections, waits, looks at the memory, and closes them."""
    before = server.rss()
    with _generator(server, program, mode, settings, options) as generator:
        assert generator.stdout is not None
        if not generator.stdout.readline():
            raise BenchError(f"{server.name}: {generator.communicate()[1].strip()}")
        time.sleep(settings.measure)
        after = server.rss()
        out, _ = generator.communicate("\n", timeout=60)
    raw = json.loads(out)
    seen = figures(raw)
    seen["setup_rate"] = count / raw["setup_seconds"]
    seen["setup_cpu_us"] = raw["server_cpu_s"] / count * 1e6
    seen["rss_before_mb"] = before / 1e6
    seen["rss_kb"] = (after - before) / count / 1000
    seen["lost"] = count - raw["alive"]
    return seen


@contextlib.contextmanager
def _generator(
    server: Server, program: Path, mode: str, settings: Settings, options: Mapping[str, float | str]
) -> Iterator[subprocess.Popen[str]]:
    words = [str(program), mode, "--port", str(server.port)]
    words += ["--cores", f"{server.cores[0]},{server.cores[1]}"]
    words += ["--watch", ",".join(map(str, family(server.process.pid)))]
    words += ["--warm", str(settings.warm), "--measure", str(settings.measure), "--poll", str(int(settings.poll))]
    for name, value in options.items():
        words += [f"--{name}", value if isinstance(value, str) else f"{value:g}"]
    with pinned(server.cores[1]):
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def figures(raw: Mapping[str, Any]) -> Figures:
    """The generator's answer as figures: everything per second of the measurement, CPU per delivery in µs."""
    seconds = float(raw["seconds"])
    own = float(raw["own_share"])
    kept = {name: float(value) for name, value in raw.items() if isinstance(value, int | float)}
    kept |= shares(seconds, raw["server_cpu_s"], own * seconds, raw["core_busy_s"])
    # where it polls all the time, what counts is how much was not spent on finding nothing
    kept["generator_share"] = own * max(0.0, 1 - float(raw["spun_share"])) if raw["polls"] else own
    if raw["deliveries"]:
        kept["cpu_us"] = raw["server_cpu_s"] / raw["deliveries"] * 1e6
    return kept


class Meter:
    """What a server used of its core, and others of both, while something else than a generator of ours loads it.

    That load is taken to be this process and what it has started.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.figures: Figures = {}

    def __enter__(self) -> Meter:
        self._began = self._sample()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, served, loaded, *busy = (
            after - before for before, after in zip(self._began, self._sample(), strict=True)
        )
        self.figures = shares(seconds, served, loaded, busy)

    def _sample(self) -> tuple[float, ...]:
        served = family(self._server.process.pid)
        loaded = set(family(os.getpid())) - set(served)
        cores = [_busy(core) for core in self._server.cores]
        return time.monotonic(), sum(map(_ran, served)), sum(map(_ran, loaded)), *cores


def shares(seconds: float, served: float, loaded: float, busy: Sequence[float]) -> Figures:
    """Of both cores, from CPU seconds: of the server, of its load, and how long each core was busy."""
    # /proc/stat has steps of 10 ms and samples; so a little less than nothing is possible
    return {
        "seconds": seconds,
        "server_cpu_s": served,
        "server_share": served / seconds,
        "generator_share": loaded / seconds,
        "foreign": max(0.0, (busy[0] - served) / seconds),
        "foreign_generator": max(0.0, (busy[1] - loaded) / seconds),
    }


# ---- asking ----


def ask(question: Question, settings: Settings, cores: tuple[int, int], report: Callable[[str, Run], None]) -> Result:
    """Measures all contestants of a question in turn."""
    result = Result(question)
    contestants = question.contestants(settings.quick)
    rounds = min(question.repeats or settings.repeats, settings.repeats)
    for number in range(rounds + 1):
        turn = [question.baseline] if question.baseline else []
        if number < rounds:
            turn += contestants
        for contestant in turn:
            run = _undisturbed(question, contestant, number, settings, cores)
            result.runs.append(run)
            report(question.name, run)
    return result


_retries_used = 0


def _undisturbed(
    question: Question, contestant: Contestant, number: int, settings: Settings, cores: tuple[int, int]
) -> Run:
    """One run; up to two more if somebody else used the cores. The least disturbed one counts."""
    global _retries_used
    tries: list[Run] = []
    while True:
        with running(contestant, cores) as server:
            tries.append(Run(contestant.name, number, question.measure(server, settings)))
        if tries[-1].disturbance <= 1 or len(tries) == 3 or _retries_used >= settings.retries:
            best = min(tries, key=lambda run: run.disturbance)
            best.repeated = len(tries) - 1
            return best
        _retries_used += 1
        time.sleep(0.5)
