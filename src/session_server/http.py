"""Pages, discovery, health and figures over HTTP. Takes requests from the front protocol, knows rooms and pieces.

One handler and a look at the path, since slugs are the user's and a router would decode them in its own way.
"""

from __future__ import annotations

import hmac
import mimetypes
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import fields
from functools import lru_cache, partial
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from aiohttp import web, web_fileresponse
from msgspec import UNSET
from msgspec.json import encode
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .config import Config, Network
from .desk import Desk
from .discovery import discover
from .limits import client_address, trusted
from .pieces import Pieces
from .posts import read_post, takes_posts
from .protocol import LimitExceeded, SessionError, Tickets, origin_allowed, piece_of, slug_from_path
from .rooms import Rooms
from .services import Totals

WEB: Final = Path(__file__).parent / "web"
OPEN: Final = {"Access-Control-Allow-Origin": "*"}
FRESH: Final = {"Cache-Control": "no-store"}
CHECKED: Final = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}  # kept, but asked about each time
DESK: Final = "/status/development"
ALONE: Final = CHECKED | {  # no other page may show it in a frame, and lead clicks there
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
PRIVATE: Final = FRESH | {
    "Content-Type": "application/json",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
JSON: Final = OPEN | FRESH | {"Content-Type": "application/json"}
RETRY_MS: Final = 2000
LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
SCRIPTS: Final = {
    "/session.js": "text/javascript",
    "/session-dev.js": "text/javascript",
    "/session.d.ts": "text/plain",
}

# As the environment's AIOHTTP_NOSENDFILE: asyncio's own loop, in the middle of a sendfile, does not see its client go.
web_fileresponse.NOSENDFILE = True  # type: ignore[misc]

Answer = web.StreamResponse


def text(status: int, line: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=line + "\n", headers=OPEN | FRESH | (headers or {}))


def not_here(method: str) -> web.Response:
    return text(405, f"{method} is not answered here, expected GET", {"Allow": "GET, HEAD, OPTIONS"})


def as_json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=encode(value), status=status, headers=JSON)


class Site:
    """What this server answers to HTTP requests that are no WebSocket upgrade."""

    def __init__(
        self, config: Config, rooms: Rooms, pieces: Pieces, tickets: Tickets, *, clock: Callable[[], float],
        state: Callable[[], str], connections: Callable[[], int],
        signal: Callable[[web.BaseRequest, str], Awaitable[Answer]], desk: Desk | None = None,
    ) -> None:  # fmt: skip
        """`state()` is `Ready`, `Full` or `Draining`; `connections()` how many clients are connected. `signal` answers
        all under `/.wrtc/`; it is given the request, and its path with the query. `desk` is there in development."""
        self._config = config
        self._rooms = rooms
        self._pieces = pieces
        self._tickets = tickets
        self._clock, self._state, self._connections = clock, state, connections
        self._signal = signal
        self._desk = desk
        self._proxies: tuple[Network, ...] = config.proxies()
        self._discovered = lru_cache(maxsize=1024)(partial(discover, config))
        self._started = clock()
        self._version = version("session-server")
        self._totals = self._registry(process=False)
        self._details = self._registry(process=True)
        self._routes: dict[str, Callable[[web.BaseRequest], Answer]] = {
            "/": self._home,
            "/check": lambda request: web.FileResponse(WEB / "check.html", headers=CHECKED),
            "/health": self._health,
            "/status": self._status,
            DESK: self._development,
            "/metrics": self._metrics,
            "/favicon.ico": lambda request: web.Response(status=204, headers={"Cache-Control": "max-age=86400"}),
            **dict.fromkeys(SCRIPTS, self._script),
        }

    async def answer(self, request: web.BaseRequest) -> Answer:
        target = request.raw_path
        if not target.startswith("/"):  # absolute form (RFC 9112 §3.2.2)
            target = re.sub(r"^https?://[^/?]*", "", target, flags=re.IGNORECASE) or "/"
        path = target.partition("?")[0]
        if path.startswith("/.wrtc/"):
            return await self._signal(request, target)
        if request.method == "POST":
            return await self._post(request, path)
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=OPEN | {"Access-Control-Allow-Methods": "GET, HEAD, OPTIONS"})
        if request.method not in {"GET", "HEAD"}:
            return not_here(request.method)
        if path.startswith("/session/"):
            return self._discover(request, target)
        route = self._routes.get(path)
        return self._page(path) if route is None else route(request)

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def _post(self, request: web.BaseRequest, path: str) -> Answer:
        """Messages for a room, or for all classic pages. A page of another site may reach a developer's machine, but
        not post to it."""
        if path == DESK and self._desk is not None:
            return await self._command(request, self._desk)
        if not takes_posts(path):
            return not_here("POST")
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if not (self._may_see_details(request) and origin_allowed(origin, (host,), ())):
            return text(403, "posting here takes the admin token (Authorization: Bearer …)")
        try:
            post = read_post(path, await request.read(), round(time.time() * 1000))
            if post.slug is None:
                self._rooms.tell_everybody(post.message, self._clock())
            else:
                self._rooms.post(post.slug, post.message, self._clock())
        except ValueError as error:
            return text(400, str(error))
        except SessionError as error:
            return text(error.status if isinstance(error, LimitExceeded) else 409, str(error))
        content = post.message.content
        return as_json({"msg": f"{post.message.type} sent", "body": None if content is UNSET else content})

    # --- discovery ----------------------------------------------------------------------------------------------------

    def _discover(self, request: web.BaseRequest, target: str) -> Answer:
        """`GET /session/{slug}`: where the room is. Opens none."""
        try:
            place = self._discovered(self._scheme(request), request.headers.get("Host", ""), target)
        except ValueError as error:
            return text(400, str(error))
        slug = place["room"]
        state = self._room_state(slug)
        if state != "Ready" and "service" in request.query:  # old pages wait for ever on any state but Ready
            return text(503, f"session server is {state.lower()}")
        told = place | {"state": state, "node": self._config.node, "ticket": self._tickets.issue(slug, self._clock())}
        return as_json(told if state == "Ready" else told | {"retry": RETRY_MS})

    def _room_state(self, slug: str) -> str:
        core = self._rooms.rooms.get(slug)
        return "Full" if core is not None and core.full else self._state()

    def _scheme(self, request: web.BaseRequest) -> str:
        """As the client used it: a trusted proxy says so, else as it was served."""
        forwarded = request.headers.get("X-Forwarded-Proto", "").lower()
        if forwarded in {"http", "https"} and trusted(self._peer(request), self._proxies):
            return forwarded
        return self._config.scheme

    def _peer(self, request: web.BaseRequest) -> str:
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else "unix"

    # --- figures ------------------------------------------------------------------------------------------------------

    def _health(self, request: web.BaseRequest) -> Answer:
        return text(200, "ok")

    def _status(self, request: web.BaseRequest) -> Answer:
        """Totals for everybody; slugs, pieces and errors for those who may see them; addresses for nobody."""
        told = self._summary()
        if self._may_see_details(request) and is_own_page(request):
            told["pieces"] = [
                {
                    "slug": piece.slug,
                    "page": piece.page is not None,
                    "code": piece.code is not None,
                    "version": piece.version,  # how often its code was loaded
                    "error": piece.error,
                }
                for piece in self._pieces.table.values()
            ]
            told["rooms"] = [
                {"slug": core.slug, "clients": len(core.clients), "people": len(core.presence)} for core in self._rooms
            ]
        return as_json(told)

    def _summary(self) -> dict[str, Any]:
        return {
            "state": self._state(),
            "uptime": round(self._clock() - self._started, 3),
            "node": self._config.node,
            "version": self._version,
            "totals": self._figures(),
        }

    def _figures(self) -> dict[str, Any]:
        totals = {field.name: getattr(self._rooms.totals, field.name) for field in fields(Totals)}
        return {
            "rooms": len(self._rooms.rooms),
            "clients": self._rooms.clients,
            "connections": self._connections(),
            **totals,
            "refused": dict(totals["refused"]),
        }

    def _metrics(self, request: web.BaseRequest) -> Answer:
        registry = self._details if self._may_see_details(request) else self._totals
        return web.Response(
            body=generate_latest(registry), headers=OPEN | FRESH | {"Content-Type": "text/plain; version=0.0.4"}
        )

    def _registry(self, process: bool) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self)
        if process:
            ProcessCollector(registry=registry)
        return registry

    def collect(self) -> Iterator[Metric]:
        """For prometheus-client. No slug in a label: slugs are the users' to invent, and theirs alone."""
        prefix = "session_server"
        for name, value in self._figures().items():
            if name == "refused":
                refused = CounterMetricFamily(
                    f"{prefix}_refused", "Refused, shed or closed, by reason.", labels=["reason"]
                )
                for reason, count in value.items():
                    refused.add_metric([reason], count)
                yield refused
            elif name in {"rooms", "clients", "connections"}:
                yield GaugeMetricFamily(f"{prefix}_{name}", f"Open {name}.", value=value)
            else:
                yield CounterMetricFamily(f"{prefix}_{name}", f"{name.replace('_', ' ')} since the start.", value=value)

    def _may_see_details(self, request: web.BaseRequest) -> bool:
        """With the admin token; in development from this machine, under a local name (a page elsewhere could point its
        own name at 127.0.0.1: DNS rebinding)."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        secret = self._config.admin_token
        if secret and scheme.lower() == "bearer" and hmac.compare_digest(as_bytes(token), as_bytes(secret)):
            return True
        host = re.sub(r":[0-9]+$", "", request.headers.get("Host", ""))
        if not self._config.development or host not in LOCAL_HOSTS | {self._config.local_name}:
            return False
        address = client_address(self._peer(request), request.headers.getall("X-Forwarded-For", []), self._proxies)
        try:
            return ip_address(address).is_loopback
        except ValueError:
            return False

    # --- the development page -----------------------------------------------------------------------------------------

    def _home(self, request: web.BaseRequest) -> Answer:
        if self._desk is not None and self._may_see_details(request):
            return web.FileResponse(WEB / "index.html", headers=ALONE)
        return web.FileResponse(WEB / "totals.html", headers=CHECKED)

    def _development(self, request: web.BaseRequest) -> Answer:
        """What it shows. No other page may read that."""
        if self._desk is None or not (self._may_see_details(request) and is_own_page(request)):
            return text(404, "nothing here")
        after = request.query.get("after", "0")
        if not (after.isdecimal() and len(after) < 16):
            return text(400, f"after is {after[:40]!r}, expected the number of a line")
        told = self._summary() | self._desk.shown(int(after), request.query.get("room"))
        return web.Response(body=encode(told), headers=PRIVATE)

    async def _command(self, request: web.BaseRequest, desk: Desk) -> Answer:
        """What it asks for. Its token is in what it was shown, so no other page knows it."""
        token = as_bytes(request.headers.get("X-Token", ""))
        known = hmac.compare_digest(token, desk.token.encode())
        if not (known and self._may_see_details(request) and is_own_page(request)):
            return text(403, "this is for the development page")
        try:
            desk.obey(await request.read(), self._clock())
        except ValueError as error:
            return text(400, str(error))
        return web.Response(body=b"{}", headers=PRIVATE)

    # --- pages --------------------------------------------------------------------------------------------------------

    def _script(self, request: web.BaseRequest) -> Answer:
        path = request.raw_path.partition("?")[0]
        headers = OPEN | CHECKED | {"Content-Type": f"{SCRIPTS[path]}; charset=utf-8"}
        return web.FileResponse(WEB / path[1:], headers=headers)

    def _page(self, path: str) -> Answer:
        """`/{slug}`: the page of its piece, or a file beside the pieces (`/field.css`)."""
        try:
            slug = slug_from_path(path[1:])
        except ValueError as error:
            return text(404 if path.startswith("/.") else 400, str(error))
        file = self._pieces.page(piece_of(slug)) or self._pieces.assets.get(slug)
        if file is None:
            return text(404, "nothing here")
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return web.FileResponse(file, headers=OPEN | CHECKED | {"Content-Type": charset(kind)})


def is_own_page(request: web.BaseRequest) -> bool:
    """Not one from elsewhere, be it another port of this machine; also what no browser sends."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    own = origin is None or origin.partition("://")[2] == request.headers.get("Host")
    return own and site in {None, "none", "same-origin"}


def as_bytes(text: str) -> bytes:
    """Of a header: what is not UTF-8 in it comes as surrogates."""
    return text.strip().encode("utf-8", "surrogateescape")


def charset(kind: str) -> str:
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith(("javascript", "json")) else kind
