"""The servers that are compared."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.harness import BUILD, GENERATOR, PEERS, Contestant

# Raised, not switched off: what the limits cost is part of what is measured.
LIMITS = {
    "message-rate": 100_000,
    "message-burst": 200_000,
    "byte-rate": 100_000_000,
    "byte-burst": 200_000_000,
    "connections-per-address": 20_000,
    "peers-per-address": 20_000,
    "max-clients": 20_000,
    "max-rooms": 10_000,
    "new-rooms-per-address": 5_000,
}


def _ours(port: int) -> list[str]:
    pieces = BUILD / "no-pieces"  # rooms without code: everything is relayed
    pieces.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("session-server")), "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--pieces", str(pieces)]
    for name, value in LIMITS.items():
        command += [f"--{name}", str(value)]
    return command


def _node(name: str, script: str, *flags: str) -> Contestant:
    return Contestant(name, lambda port: ["node", str(PEERS / script), str(port), *flags])


OURS = Contestant("ours", _ours)
OURS_GECKOS = Contestant("ours, geckos.io", _ours)  # the same server, asked by geckos.io's clients
NODE = _node("node", "loop.mjs")
NODE_GREETS = _node("node greets", "loop.mjs", "--greet")
NODE_TICK = _node("node tick", "tick.mjs")
NODE_HTTP = _node("node http", "http.mjs")
GECKOS = _node("geckos", "geckos.mjs")
DATACHANNEL = _node("node-datachannel", "datachannel.mjs")
SOURCE = Contestant("source", lambda port: [str(GENERATOR), "source", "--port", str(port)])
