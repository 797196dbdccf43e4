"""Is the generator the limit? How much it can take when a C program does nothing but send joined frames at it."""

from bench.contestants import SOURCE
from bench.harness import Figures, Question, Row, Server, Settings, load


def measure(server: Server, settings: Settings) -> Figures:
    return load(server, "absorb", settings, connections=200)


QUESTION = Question(
    name="generator",
    title="what the generator itself can take, 200 connections",
    ours=SOURCE,
    measure=measure,
    rows=(Row("rate", "deliveries", "1/s"),),
    repeats=2,
    loads_generator=True,
)
