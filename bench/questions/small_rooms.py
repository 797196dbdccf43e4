"""What does a delivery cost where little (12 × 8) or nothing (40 × 3) can be joined? Here parsing counts, too."""

from functools import partial

from bench.contestants import NODE, NODE_TICK, OURS
from bench.harness import Figures, Question, Row, Server, Settings, load


def measure(server: Server, settings: Settings, rooms: int, size: int, window: int) -> Figures:
    return load(server, "closed", settings, rooms=rooms, size=size, window=window)


def _question(rooms: int, size: int, window: int, goal: float) -> Question:
    return Question(
        name=f"rooms-of-{size}",
        title=f"{rooms} rooms × {size}, {window} in flight per room",
        ours=OURS,
        baseline=NODE,
        others=(NODE_TICK,),
        measure=partial(measure, rooms=rooms, size=size, window=window),
        rows=(
            Row("cpu_us", "CPU per delivery", "µs", goal=goal, at_least=False),
            Row("rate", "deliveries", "1/s"),
        ),
    )


QUESTIONS = (_question(12, 8, 4, goal=0.34), _question(40, 3, 1, goal=0.80))
