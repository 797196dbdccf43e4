"""How fast is `GET /session/x` on the port that also carries the WebSockets? The peer is a bare HTTP server."""

from bench.contestants import NODE_HTTP, OURS
from bench.harness import Figures, Question, Row, Server, Settings, load


def measure(server: Server, settings: Settings) -> Figures:
    return load(server, "get", settings, connections=32)


QUESTION = Question(
    name="discovery",
    title="GET /session/x, 32 keep-alive connections",
    ours=OURS,
    baseline=NODE_HTTP,
    measure=measure,
    rows=(
        Row("rate", "requests", "1/s", goal=0.35),
        Row("cpu_us", "CPU per request", "µs"),
        Row("p99_ms", "p99", "ms"),
    ),
)
