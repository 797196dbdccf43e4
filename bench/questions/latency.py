"""How long does a message take under a load that Node could not carry?

Open loop: the messages leave at even distances, whatever comes back. A message is stamped with the time it was due, so
a server that falls behind shows it. Node's loop is offered what it can just carry, for comparison.
"""

from bench.contestants import NODE, NODE_TICK, OURS
from bench.harness import Figures, Question, Row, Server, Settings, load

ROOMS, SIZE = 6, 32
OFFERED = {NODE.name: 3_600}  # messages per second
FULL = 12_800


def measure(server: Server, settings: Settings) -> Figures:
    seen = load(server, "open", settings, rooms=ROOMS, size=SIZE, rate=OFFERED.get(server.name, FULL))
    seen["kept"] = seen["deliveries"] / (seen["sent"] * (SIZE - 1))
    return seen


QUESTION = Question(
    name="latency",
    title=f"{ROOMS} rooms × {SIZE}, {FULL} messages/s offered evenly ({NODE.name}: {OFFERED[NODE.name]})",
    ours=OURS,
    baseline=NODE,
    others=(NODE_TICK,),
    measure=measure,
    rows=(
        Row("p99_ms", "p99", "ms", goal=2.0, ratio=False, at_least=False, compare=False),
        Row("p50_ms", "p50", "ms", compare=False),
        Row("kept", "delivered of what was due", "", goal=0.99, ratio=False, compare=False),
        Row("cpu_us", "CPU per delivery", "µs", compare=False),
    ),
)
