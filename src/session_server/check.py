"""The doctor for a running server: tries what a page would do, one step after another, and tells what it saw.

It comes as clients do, through whatever stands in front of the server, and measures in a room of its own, where it
disturbs nobody. What its observations mean is in findings.py; the same in a visitor's browser is web/check.html.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from . import findings
from .addresses import resolve
from .client.links import DataChannelLink
from .client.wire import SessionClosed, write_frame
from .findings import Finding, SessionInfo, by_status, failed, ms, ok, shown, skipped
from .probe import UDP_WITHIN, WITHIN, Seat, candidates_of, has_route, seated
from .protocol import Close, slug_from_path, slug_to_path

IDLE: Final = 60.0  # seconds of `--long`: proxies end what they take to be idle after 30 or 60
PINGS: Final = 20
PING_EVERY: Final = 0.05  # seconds
DATAGRAMS: Final = 100
DATAGRAM_EVERY: Final = 0.02  # seconds
AT_FIRST: Final = 150  # datagrams, before the first has come
STRAGGLERS: Final = 1.0  # seconds, after which what has not come is lost
MAX_BODY: Final = 64 * 1024  # bytes of an answer that are read
SCRATCH: Final = "check~"  # begins the names of our rooms: a piece cannot be named like a route, so they have no code
ELSEWHERE: Final = "https://elsewhere.example"  # a site that is not the server's
SIGNALLING: Final = "/.wrtc/v2/connections"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and perhaps one of its rooms."""

    base: str  # scheme://host[:port]
    slug: str | None = None

    @classmethod
    def of(cls, url: str) -> Target:
        """Raises ValueError if this is neither the root of a server nor one of its sessions."""
        parts = findings.split(url.strip())
        if parts is None or "@" in parts.netloc or not (parts.path in {"", "/"} or parts.path.startswith("/session/")):
            raise ValueError(f"URL is {url!r}, expected https://HOST or https://HOST/session/SLUG")
        slug = slug_from_path(parts.path.removeprefix("/session/")) if parts.path.startswith("/session/") else None
        return cls(origin_of(url.strip()), slug)

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.base)


def origin_of(url: str) -> str:
    """By HTTP, whatever the URL's own scheme."""
    parts = urlsplit(url)
    return f"{ {'ws': 'http', 'wss': 'https'}.get(parts.scheme, parts.scheme) }://{parts.netloc}"


def session_url(base: str, slug: str) -> str:
    """Where a room is joined."""
    return "ws" + base.removeprefix("http") + slug_to_path(slug)


class Offered(Struct):
    """What a geckos.io client is answered that asks for an offer."""

    class Description(Struct):
        sdp: str

    id: str
    localDescription: Description


@dataclass(frozen=True, slots=True)
class Fetched:
    status: int
    headers: Any  # a mapping that ignores case
    body: bytes

    def read(self, shape: type[T]) -> T | None:
        try:
            return msgspec.json.decode(self.body, type=shape)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def __str__(self) -> str:
        return f"{self.status} {shown(self.body.decode(errors='replace'))}".strip()


# --- the examination --------------------------------------------------------------------------------------------------


class Doctor:
    """One examination. Whatever the server and the network do is reported, and raises nothing."""

    def __init__(
        self, target: Target, tell: Callable[[Finding], None], origin: str | None = None, long: bool = False
    ) -> None:
        """`tell` is called with each finding as soon as it is made. `origin` is a site (`https://host`) whose pages
        shall be let in. `long` also leaves the connection alone for a minute."""
        self._target = target
        self._tell = tell
        self._origin = origin
        self._long = long
        self._room = SCRATCH + token_hex(4)
        self._tls = ssl.create_default_context()
        self._addresses: list[str] = []  # of the host
        self._skew: float | None = None  # seconds by which its wall clock is ahead
        self._info: SessionInfo
        self._http: aiohttp.ClientSession

    async def run(self) -> None:
        if not await self._reach():
            return
        timeout, connector = aiohttp.ClientTimeout(total=WITHIN), aiohttp.TCPConnector(ssl=self._tls, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._http:
            info = await self._discover(self._target.slug or self._room)
            if info is None:
                self._tell(skipped("links", "WebSocket and UDP", "not tried, as discovery did not say where they are"))
                return
            self._info = info
            await self._cors()
            if self._target.slug is not None:
                await self._named_room(self._target.slug)
            await self._links()

    # The way there: name, TCP, TLS

    async def _reach(self) -> bool:
        parts = self._target.parts
        host, uses_tls = str(parts.hostname), parts.scheme == "https"
        port = parts.port or (443 if uses_tls else 80)
        tried = f"connecting to {host}, port {port}"
        try:
            self._addresses = await resolve(host)
            await connect(host, port, None)
        except (OSError, UnicodeError) as error:
            self._tell(findings.no_connection(tried, error))
            return False
        if not uses_tls:
            self._tell(findings.without_tls(tried, self._addresses))
            return True
        try:
            await self._handshake(host, port)
        except OSError as error:  # ssl.SSLError and TimeoutError are among them
            self._tell(findings.no_tls(tried, why(error)))
            return False
        return True

    async def _handshake(self, host: str, port: int) -> None:
        """Once it has said that the certificate is bad, the examination goes on as a visitor who accepts it."""
        tried = f"the certificate of {host}"
        try:
            certificate = await connect(host, port, self._tls)
        except ssl.SSLCertVerificationError as error:
            self._tell(findings.bad_certificate(tried, error.verify_code, error.verify_message))
            self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
            await connect(host, port, self._tls)
        else:
            begin, end = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
            self._tell(findings.certificate_life(tried, end - time.time(), end - begin))

    # HTTP

    async def _fetch(self, method: str, url: str, headers: dict[str, str] | None = None, body: Any = None) -> Fetched:
        """Raises aiohttp.ClientError, TimeoutError."""
        sent = ({"Origin": self._origin} if self._origin else {}) | (headers or {})
        async with self._http.request(method, url, headers=sent, json=body) as answer:
            data = b""
            while len(data) < MAX_BODY and (part := await answer.content.read(MAX_BODY)):
                data += part
            return Fetched(answer.status, answer.headers, data)

    async def _discover(self, slug: str) -> SessionInfo | None:
        url = self._target.base + slug_to_path(slug)
        tried = f"GET {url}"
        try:
            answer = await self._fetch("GET", url)
        except (aiohttp.ClientError, TimeoutError) as error:
            self._tell(failed("discovery", tried, f"no answer: {why(error)}", "Does a web server listen there?"))
            return None
        self._skew = findings.skew(answer.headers.get("Date", ""), time.time())
        info = answer.read(SessionInfo)
        if answer.status != 200:
            self._tell(failed("discovery", tried, str(answer), by_status(answer.status)))
            return None
        if info is None:
            seen = f"{answer}, expected JSON with url, udp and state"
            self._tell(failed("discovery", tried, seen, by_status(404)))
            return None
        finding = findings.judge_discovery(tried, self._target.base, info)
        self._tell(finding)
        return None if finding.level is findings.Level.FAILED else info

    async def _cors(self) -> None:
        """Whether pages of another site may read what they need."""
        origin = self._origin or ELSEWHERE
        wanted = "authorization,content-type"
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
        rows: tuple[tuple[str, str, dict[str, str]], ...] = (
            ("GET", self._target.base + slug_to_path(self._room), {}),
            ("GET", origin_of(self._info.url) + "/session.js", {}),
            ("OPTIONS", origin_of(self._info.udp) + SIGNALLING, preflight),
        )
        closed = []
        for method, url, headers in rows:
            try:
                answer = await self._fetch(method, url, {"Origin": origin, **headers})
                missing = findings.lacks(answer.headers, origin, wanted if headers else "")
            except (aiohttp.ClientError, TimeoutError) as error:
                missing = f"no answer: {why(error)}"
            if missing:
                closed.append(f"{method} {urlsplit(url).path}: {missing}")
        tried = f"what a page of {origin} may read"
        if closed:
            advice = "Let the proxy, or the site that answers for discovery, leave Access-Control-* as they are."
            self._tell(failed("cors", tried, "; ".join(closed), advice))
        else:
            self._tell(ok("cors", tried, "discovery, /session.js and signalling are open to it"))

    # WebSocket

    def _seated(self, url: str) -> Any:
        return seated(url, self._tls if url.startswith("wss:") else None, self._origin)

    async def _named_room(self, slug: str) -> None:
        url = session_url(self._base, slug)
        tried = f"joining {url}"
        try:
            async with self._seated(url) as seat:
                self._tell(ok("room", tried, f"{seat.welcome.count or 1} there, with the doctor, who left again"))
        except SessionClosed as error:
            if error.code == Close.REFUSED:
                self._tell(ok("room", tried, "it asks who comes for a token: the doctor has none"))
            else:
                self._tell(findings.not_joined("room", tried, error.code, error.reason))
        except TimeoutError:
            self._tell(findings.not_joined("room", tried, Close.ABNORMAL, f"no welcome within {WITHIN:g} s"))

    @property
    def _base(self) -> str:
        """Where discovery sends clients."""
        return origin_of(self._info.session or self._info.url)

    async def _links(self) -> None:
        url = session_url(self._base, self._room)
        tried = f"joining {url}"
        began = time.monotonic()
        is_in = False
        try:
            async with self._seated(url) as seat:
                took = time.monotonic() - began
                is_in, tried = True, f"staying on {url}"
                self._tell(ok("websocket", f"joining {url}", f"a seat after {ms(took)}", seconds=took))
                await self._use(seat, url)
        except SessionClosed as error:
            self._tell(findings.not_joined("websocket", tried, error.code, error.reason))
        except TimeoutError:
            self._tell(findings.not_joined("websocket", tried, Close.ABNORMAL, f"no answer within {WITHIN:g} s"))
        if not is_in:
            self._tell(
                skipped("links", "UDP, geckos.io, round trip and clock", "not tried, as the doctor is not let in")
            )

    async def _use(self, seat: Seat, url: str) -> None:
        took = []
        for _ in range(PINGS):
            took.append(await seat.ping())
            await asyncio.sleep(PING_EVERY)
        self._tell(findings.judge_round_trips(f"{PINGS} pings by WebSocket", took))
        candidate = await self._udp(seat)
        if candidate is None:
            self._tell(skipped("datagrams", "loss and jitter", "not tried, as no data channel opens"))
        else:
            async with self._seated(url) as other:
                await self._datagrams(seat, other, candidate)
        await self._geckos(candidate is not None)
        offset = seat.clock.time - time.monotonic()
        self._tell(findings.judge_clocks("the server's clocks", offset, min(took) / 2, self._skew))
        if self._long:
            await self._idle(seat)

    async def _idle(self, seat: Seat) -> None:
        tried = f"saying nothing by WebSocket for {IDLE:g} s"
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE):
                await seat.ended.wait()
        if seat.closed is None:
            await seat.ping()
            self._tell(ok("idle", tried, "it stayed open, and answers"))
            return
        advice = "Raise the proxy's time for idle connections (nginx: proxy_read_timeout) above 30 s."
        seen = f"ended after {time.monotonic() - began:.0f} s: {shown(str(seat.closed))}"
        self._tell(failed("idle", tried, seen, advice))

    # UDP

    async def _udp(self, seat: Seat) -> str | None:
        """Tries each announced address alone; a candidate that works, if one does."""
        if not seat.welcome.offer:
            advice = "Let the proxy pass our path as it is; a server without a UDP port has none to offer."
            self._tell(failed("udp", "asking for a data channel", "the server offers none", advice))
            return None
        tries = candidates_of(seat.welcome.offer)
        outcomes = [await self._try(seat, *one) for one in tries]
        working = [line for (line, _, _), outcome in zip(tries, outcomes, strict=True) if isinstance(outcome, float)]
        public = [one for one in self._addresses if not findings.is_private(one)]
        for (_, host, port), outcome in zip(tries, outcomes, strict=True):
            self._tell(findings.judge_candidate(host, port, outcome, is_public=bool(public), is_only=not working))
        hosts = [host for _, host, _ in tries]
        if public and all(map(findings.is_private, hosts)):
            self._tell(findings.only_private(hosts, public[0]))
        return working[0] if working else None

    async def _try(self, seat: Seat, candidate: str, host: str, port: int) -> float | str | None:
        """As `findings.judge_candidate` takes it."""
        if not has_route(host, port):
            return None
        began = time.monotonic()
        try:
            async with seat.side(candidate):
                return time.monotonic() - began
        except TimeoutError:
            return f"no answer within {UDP_WITHIN:g} s"
        except SessionClosed:
            raise
        except (OSError, ValueError) as error:
            return why(error)

    async def _datagrams(self, seat: Seat, other: Seat, candidate: str) -> None:
        """From one client to another through the server, by UDP both times."""
        tried = f"{DATAGRAMS} datagrams from one client to another"
        try:
            async with seat.side(candidate) as out, other.side(candidate):
                # Where packets are lost the server learns only later that the other's channel is open. Until then it
                # tells it by WebSocket, which is no loss: what is counted begins when the first came by UDP.
                other.wanted = range(1, AT_FIRST + DATAGRAMS + 1)
                early = await fly(out, range(1, AT_FIRST + 1), until=other.came)
                sent = await fly(out, range(len(early) + 1, len(early) + DATAGRAMS + 1))
                with suppress(TimeoutError):
                    async with asyncio.timeout(STRAGGLERS):
                        while not other.arrived.keys() >= sent.keys():
                            other.came.clear()
                            await other.came.wait()
        except (TimeoutError, ValueError) as error:
            seen = f"the channel opened before, and not again: {why(error)}"
            self._tell(failed("datagrams", tried, seen, findings.FIREWALL))
            return
        took = [other.arrived[number] - when for number, when in sent.items() if number in other.arrived]
        self._tell(findings.judge_datagrams(tried, took, DATAGRAMS))

    # geckos.io

    async def _geckos(self, opens: bool) -> None:
        """As its clients do it, in our room, which a ticket names. `opens`: whether UDP works from here."""
        base = origin_of(self._info.udp) + SIGNALLING
        tried = f"a geckos.io client by POST {base}"
        try:
            # Of a ticket's own discovery: a ticket is good once, and that for a named room leads there.
            info = (await self._fetch("GET", self._target.base + slug_to_path(self._room))).read(SessionInfo)
            ticket = info.ticket if info is not None else None
            answer = await self._fetch("POST", base, {"Authorization": ticket} if ticket else {})
            offered = answer.read(Offered)
            if answer.status != 200 or offered is None:
                self._tell(failed("geckos", tried, str(answer), by_status(answer.status if offered else 404)))
                return
            try:
                self._tell(await self._open_geckos(offered.localDescription.sdp, f"{base}/{offered.id}", tried, opens))
            finally:
                await self._fetch("POST", f"{base}/{offered.id}/close")
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            self._tell(failed("geckos", tried, why(error), "Does the proxy pass /.wrtc/ on?"))

    async def _open_geckos(self, offer: str, url: str, tried: str, opens: bool) -> Finding:
        side = DataChannelLink(offer, time.monotonic, lambda frame: None)
        try:
            answer = await self._fetch("POST", f"{url}/remote-description", body={"type": "answer", "sdp": side.answer})
            if answer.status != 200:
                return failed("geckos", tried, f"our answer got {answer}", "Do several servers share this name?")
            if not opens:
                return findings.warning("geckos", tried, "signalling works; the channel needs UDP", findings.FIREWALL)
            began = time.monotonic()
            await side.bind()
            async with asyncio.timeout(UDP_WITHIN):
                await side.opened.wait()
            took = time.monotonic() - began
            return ok("geckos", tried, f"a channel after {ms(took)}", seconds=took)
        except TimeoutError:
            return failed("geckos", tried, "signalling works, but no channel opened", findings.FIREWALL)
        finally:
            side.close()


async def fly(side: DataChannelLink, numbers: range, until: asyncio.Event | None = None) -> dict[int, float]:
    """Sends one after the other, not longer than `until`; number → when it was sent."""
    sent = {}
    for number in numbers:
        sent[number] = time.monotonic()
        side.send(write_frame("check", reliable=False, n=number))
        await asyncio.sleep(DATAGRAM_EVERY)
        if until is not None and until.is_set():
            break
    return sent


async def connect(host: str, port: int, context: ssl.SSLContext | None) -> dict[str, Any]:
    """Connects once; the certificate, empty if it was not looked at. Raises OSError."""
    async with asyncio.timeout(WITHIN):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        return writer.get_extra_info("peercert") or {}
    finally:
        writer.transport.abort()


def why(error: Exception) -> str:
    return shown(str(error)) or type(error).__name__
