"""Who may import whom: downward only, and no clock, task or socket on the quiet floors (docs/explain/architecture.md).

A place is a module's path below the package: ("transports", "websocket"); () is the door, `session_server` itself.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "session_server"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE

# Lowest first: a place may import what stands before it.
GROUND = ("config", "protocol", "geckos", "limits", "clock", "rfc6455", "discovery", "conditions")
ROOMS = (
    "trust", "presence", "posts", "stream", "services", "outbox", "handlers", "calls", "succession", "inbox", "room",
    "rooms", "links", "pieces", "conditioner", "desk", "handover",
)  # fmt: skip
STRANGERS = ("http", "signalling", "transports", "engine")  # these do not see each other
TOP = (
    "logs", "tokens", "reload", "tasks", "addresses", "tls", "port", "keeper", "server", "dev", "findings", "probe",
    "check", "load", "cli",
)  # fmt: skip
FLOORS = (*GROUND, *ROOMS, *STRANGERS, *TOP)
ANNEXES = {  # with floors of their own
    "client": ("wire", "state", "links", "outbox", "handlers", "seat"),  # the Python client
    "testing": ("loop", "server", "links", "player"),  # the kit of authors, for what stands below `server`
}
QUIET = (*GROUND, *ROOMS, "rtc")
LOUD = {"asyncio", "socket", "select", "ssl", "threading", "time"}

Place = tuple[str, ...]


def may_import(here: Place, there: Place) -> bool:
    if is_built_in_piece(here) or not there:  # built-in pieces use the door, as a user's do; nobody else does
        return is_built_in_piece(here) and (not there or is_part_of_a_piece(there))
    if is_built_in_piece(there):  # found by slug at run time
        return False
    mine, other = here[0], there[0]
    if "rtc" in (mine, other):  # the cellar has two stairs
        return other == "rtc" and (mine in ("rtc", "client") or here == ("transports", "datachannel"))
    if mine == other and mine in ANNEXES:  # its __init__ is its roof
        floors = ANNEXES[mine]
        return len(there) > 1 and (len(here) == 1 or floors.index(there[1]) < floors.index(here[1]))
    if mine == "testing":
        return other in FLOORS[: FLOORS.index("server")]
    if mine == "client":
        return other in ("protocol", "trust")
    if other == "client":
        return mine in ("probe", "check", "load")
    if mine == other:  # in a drawer only its contract, which is its __init__
        return len(here) > 1 and len(there) == 1
    if mine in STRANGERS and other in STRANGERS:
        return False
    return mine in FLOORS and other in FLOORS[: FLOORS.index(mine)]


def is_built_in_piece(place: Place) -> bool:
    return len(place) > 1 and place[0] == "pieces"


def is_part_of_a_piece(place: Place) -> bool:
    return is_built_in_piece(place) and place[1].startswith("_")


def places() -> dict[Place, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        *drawers, name = path.relative_to(SOURCE).with_suffix("").parts
        found[(*drawers,) if name == "__init__" else (*drawers, name)] = path
    return found


def imported(code: str, here: Place, is_drawer: bool, files: set[Place]) -> Iterator[tuple[int, str]]:
    """Line and full name of every import in `code`, those within functions and under TYPE_CHECKING too."""
    base = (PACKAGE, *here) if is_drawer else (PACKAGE, *here)[:-1]  # what a single leading dot means
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) + 1 - node.level] if node.level else ()
            module = (*start, *(node.module or "").split(".")) if node.module else start
            for alias in node.names:  # from . import server: the module is among the aliases
                below = (*module[1:], alias.name)
                is_module = below in files or (len(below) == 1 and alias.name in (*FLOORS, *ANNEXES, "rtc"))
                yield node.lineno, ".".join((*module, alias.name) if is_module else module)


def faults(code: str, here: Place, is_drawer: bool = False, files: set[Place] | None = None) -> list[str]:
    name = ".".join((PACKAGE, *here))
    found = []
    for line, target in imported(code, here, is_drawer, set(places()) if files is None else files):
        root, *below = target.split(".")
        if root == PACKAGE and not may_import(here, tuple(below)):
            found.append(f"{name}, line {line}: may not import {target}")
        elif here[0] in QUIET and root in LOUD:
            found.append(f"{name}, line {line}: a quiet floor, may not import {target}")
    return found


def test_every_file_has_a_place() -> None:
    lost = [place for place in places() if place and place[0] not in (*FLOORS, *ANNEXES, "rtc")]
    assert not lost, f"without a place: {lost}"


def test_imports_go_down_and_quiet_floors_stay_quiet() -> None:
    found = []
    for place, path in places().items():
        if place:  # the door loads what it offers
            found += faults(path.read_text(encoding="utf-8"), place, path.name == "__init__.py")
    assert not found, "\n".join(found)


WEBSOCKET = ("transports", "websocket")
FILES = {("transports",), WEBSOCKET, ("transports", "datachannel"), ("rtc",), ("rtc", "stun")}
FILES |= {("pieces", "lobby"), ("pieces", "_code")}
FILES |= {(annex, name) for annex, floors in ANNEXES.items() for name in floors}
BAD = (
    (("rooms",), "from . import server"),
    (("rooms",), "from session_server import http"),
    (("rooms",), "def f():\n    import session_server.server"),
    (("room",), "if TYPE_CHECKING:\n    from .rooms import Rooms"),
    (("room",), "from session_server import Client"),
    (("server",), "from .pieces import lobby"),
    (("server",), "from .client import session"),
    (("pieces", "lobby"), "from ..rooms import Rooms"),
    (("http",), "from .transports.websocket import Connection"),
    (WEBSOCKET, "from . import datachannel"),
    (WEBSOCKET, "from ..rtc import stun"),
    (("rtc", "sctp"), "from ..protocol import Message"),
    (("limits",), "import time"),
    (("presence",), "from asyncio import Task"),
    (("nowhere",), "from .config import Config"),
    (("client", "links"), "from ..room import Client"),
    (("client", "links"), "from .seat import Seat"),
    (("client", "seat"), "from . import session"),
    (("testing", "server"), "from ..server import Server"),
    (("testing", "loop"), "from .player import Player"),
    (("reload",), "from .testing import RoomTest"),
)
GOOD = (
    (("rooms",), "import logging\nfrom . import config, room\nfrom .protocol import Message"),
    (("pieces", "lobby"), "from session_server import Room, on\nfrom session_server.pieces._code import Channel"),
    (WEBSOCKET, "import asyncio\nfrom . import Link\nfrom .. import config\nfrom ..rooms import Rooms"),
    (("transports", "datachannel"), "from ..rtc import stun"),
    (("client", "links"), "import asyncio\nfrom ..protocol import Message\nfrom ..rtc.sctp import Association"),
    (("client", "seat"), "from .links import WebSocketLink\nfrom ..trust import Trust"),
    (("load",), "from .client import session"),
    (("testing",), "from .rooms import Rooms\nfrom .testing.player import Player"),
)


def test_the_rule_tells_bad_imports_from_good_ones() -> None:
    for here, code in BAD:
        assert faults(code, here, files=FILES), f"{here} was allowed {code!r}"
    for here, code in GOOD:
        assert not faults(code, here, files=FILES)
