"""What does a message cost by data channel, how many get through, and what does a peer cost that only connects?

The peer is a relay on `@geckos.io/server`; the same on bare node-datachannel stands beside it. Ours is measured twice:
with clients of its own dialect, who hold a WebSocket as well and acknowledge on it, and with the peer's own clients.
"""

from dataclasses import replace
from functools import partial

from bench.contestants import DATACHANNEL, GECKOS, OURS, OURS_GECKOS
from bench.harness import UDP, Figures, Question, Row, Server, Settings, hold, load

PEERS = 32
WARM = 0.6  # seconds: a channel of ours is trusted after the first acknowledgement
HELD = 300
CYCLES = 240


def dialect(server: Server) -> str:
    return "session" if server.name == OURS.name else "geckos"


def relay(server: Server, settings: Settings, senders: int, rate: int, spread: bool = False) -> Figures:
    return load(
        server, "open", replace(settings, warm=WARM), UDP,
        dialect=dialect(server), peers=PEERS, senders=senders, rate=rate, spread=spread,
    )  # fmt: skip


def memory(server: Server, settings: Settings) -> Figures:
    return hold(server, "hold", HELD, settings, UDP, dialect=dialect(server), peers=HELD)


def cycle(server: Server, settings: Settings) -> Figures:
    seen = load(server, "cycle", settings, UDP, dialect=dialect(server), peers=CYCLES)
    seen["cycle_ms"] = seen["server_cpu_s"] / CYCLES * 1e3
    return seen


def _question(name: str, title: str, rows: tuple[Row, ...], senders: int, rate: int, spread: bool = False) -> Question:
    return Question(
        name=name,
        title=f"{PEERS} peers, {title}",
        ours=OURS,
        baseline=GECKOS,
        others=(OURS_GECKOS, DATACHANNEL),
        measure=partial(relay, senders=senders, rate=rate, spread=spread),
        rows=rows,
        repeats=3,
        program=UDP,
    )


def _both(row: Row) -> tuple[Row, Row]:
    """For clients of our dialect, and for geckos.io's."""
    return row, replace(row, what=f"{row.what}, geckos.io clients", who=OURS_GECKOS.name)


def _cost(goal: float | None) -> tuple[Row, ...]:
    return (
        *_both(Row("cpu_us", "CPU per delivery", "µs", goal=goal, at_least=False)),
        Row("p99_ms", "p99", "ms", compare=False),
        Row("kept", "delivered of what was due", "", compare=False),
    )


QUESTIONS = (
    _question("udp-60", "4 senders in phase, 60 Hz", _cost(0.40), 4, 60),
    _question("udp-240", "4 senders in phase, 240 Hz", _cost(0.45), 4, 240),
    _question("udp-spread", "4 senders one after the other, 240 Hz", _cost(None), 4, 240, spread=True),
    _question("udp-alone", "1 sender, nothing to bundle, 240 Hz", _cost(0.90), 1, 240),
    _question(
        "udp-flood",
        "4 senders in phase, 1 kHz: 128,000 messages/s",
        (
            *_both(Row("kept", "delivered of what was due", "", goal=0.99, ratio=False, compare=False)),
            *_both(Row("p99_ms", "p99", "ms", goal=6.0, ratio=False, at_least=False, compare=False)),
            *_both(Row("cpu_us", "CPU per delivery", "µs")),
        ),
        4,
        1000,
    ),
    Question(
        name="udp-memory",
        title=f"{HELD} peers that only hold their data channel",
        ours=OURS,
        baseline=GECKOS,
        others=(OURS_GECKOS, DATACHANNEL),
        measure=memory,
        rows=_both(Row("rss_kb", "resident memory per peer", "kB", goal=120, ratio=False, at_least=False, steady=True)),
        repeats=2,
        program=UDP,
    ),
    Question(
        name="udp-cycle",
        title=f"{CYCLES} times: connect, open the channel, disconnect",
        ours=OURS,
        baseline=GECKOS,
        others=(OURS_GECKOS, DATACHANNEL),
        measure=cycle,
        rows=_both(Row("cycle_ms", "CPU per connect-disconnect", "ms", goal=2.0, ratio=False, at_least=False)),
        repeats=2,
        program=UDP,
    ),
)  # fmt: skip
