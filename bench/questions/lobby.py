"""A world of the classic lobby: 100 pages in `field` that move 30 times a second, each told to the 99 others.

Ours runs the lobby's own code for each move (who is where, for those who come late); the peer only passes it on.
"""

from bench.contestants import NODE, NODE_TICK, OURS
from bench.harness import Figures, Question, Row, Server, Settings, load

CLIENTS, HERTZ = 100, 30
OFFERED = {NODE.name: 900}  # messages per second that it can just carry
FULL = CLIENTS * HERTZ
HELLO = '{"type":"world:field:join","content":{"handle":"guest","pos":{"x":0,"y":0}}}'


def measure(server: Server, settings: Settings) -> Figures:
    rate = OFFERED.get(server.name, FULL)
    seen = load(
        server, "open", settings, rooms=1, size=CLIENTS, rate=rate,
        path="/session/lobby~", type="world:field:move", hello=HELLO,
    )  # fmt: skip
    seen["kept"] = seen["deliveries"] / (seen["sent"] * (CLIENTS - 1))
    return seen


QUESTION = Question(
    name="lobby",
    title=f"{CLIENTS} classic pages in a world, {FULL} moves/s ({NODE.name}, passing on: {OFFERED[NODE.name]})",
    ours=OURS,
    baseline=NODE,
    others=(NODE_TICK,),
    measure=measure,
    rows=(
        Row("cpu_us", "CPU per delivery", "µs", at_least=False, goal=0.34),
        Row("p99_ms", "p99", "ms", at_least=False, compare=False),
        Row("kept", "delivered of what was due", "", goal=0.99, ratio=False, compare=False),
    ),
)
