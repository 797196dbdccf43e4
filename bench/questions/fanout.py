"""How many deliveries per second can one core do, when many sit in one room and the server is never idle?"""

from bench.contestants import NODE, NODE_TICK, OURS
from bench.harness import Figures, Question, Row, Server, Settings, load


def measure(server: Server, settings: Settings) -> Figures:
    return load(server, "closed", settings, rooms=2, size=100, window=8)


QUESTION = Question(
    name="fanout",
    title="2 rooms × 100, saturated (8 messages of each room in flight)",
    ours=OURS,
    baseline=NODE,
    others=(NODE_TICK,),
    measure=measure,
    rows=(
        Row("rate", "deliveries", "1/s", goal=9.0),
        Row("cpu_us", "CPU per delivery", "µs"),
    ),
)
