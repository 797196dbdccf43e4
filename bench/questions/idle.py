"""What does a connection cost that only sits there, and how fast do they come in?

A classic join is told to everyone in the room, here to 4.5 others on average, one write each. So the fair peer for
the rate is one that does the same; the silent one, which only lets them in, is shown beside it.
Kernel memory is not counted.
"""

from bench.contestants import NODE, NODE_GREETS, OURS
from bench.harness import Figures, Question, Row, Server, Settings, hold

CONNECTIONS, ROOMS = 10_000, 1_000


def measure(server: Server, settings: Settings) -> Figures:
    return hold(server, "idle", CONNECTIONS, settings, connections=CONNECTIONS, rooms=ROOMS)


QUESTION = Question(
    name="idle",
    title=f"{CONNECTIONS} idle connections in {ROOMS} rooms",
    ours=OURS,
    baseline=NODE,
    others=(NODE_GREETS,),
    measure=measure,
    rows=(
        Row("rss_kb", "resident memory per connection", "kB", goal=7.0, ratio=False, at_least=False, steady=True),
        Row("setup_rate", "set up, peer announces joins too", "1/s", goal=1.3, against=NODE_GREETS.name),
        Row("setup_rate", "set up, peer says nothing", "1/s", goal=1.3),
        Row("setup_cpu_us", "CPU per connection, peer says nothing", "µs"),
    ),
    repeats=3,
)
