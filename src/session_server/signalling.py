"""Signalling of geckos.io clients over HTTP, under `/.wrtc/v2`: they ask, are offered a data channel, and answer.

An offer that nobody answers costs no memory: what must be known when the answer comes is in its id. Whatever a user
should see fails on the first request, since the clients look at no other status (docs/reference/wire.md).
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from secrets import token_bytes
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web
from msgspec import Struct
from msgspec.json import Decoder, encode

from .config import Config
from .geckos import BESIDE, MEMBER, Geckos
from .limits import client_address, network
from .protocol import LOBBY, Close, Hello, LimitExceeded, SessionError, Tickets, origin_allowed
from .room import RoomCore
from .rooms import Rooms

PREFIX: Final = "/.wrtc/"
MAX_BODY: Final = 16 * 1024  # bytes
OFFER_LIFE: Final = 15  # seconds in which it must be answered
MAX_TOKEN: Final = 1024  # characters of an Authorization header

CONNECTIONS: Final = "/.wrtc/v2/connections"
OF_ONE: Final = re.compile(rf"{CONNECTIONS}/([A-Za-z0-9]+)/(remote-description|additional-candidates|close)")
METHODS: Final = {"remote-description": "POST", "additional-candidates": "GET", "close": "POST"}
HEADERS: Final = {  # as the library's server sends them, and for any client whether it authorizes or not
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Request-Method": "*",
    "Access-Control-Request-Headers": "X-Requested-With, accept, content-type",
    "Access-Control-Allow-Methods": "OPTIONS, GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Max-Age": "7200",
    "Cache-Control": "no-store",
}
NAMED: Final = frozenset({200, 400, 401, 402, 403, 404, 500})  # the others go by their number alone

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID: Final = 24  # characters


class Turned(Exception):
    """Not let in."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Description(Struct):
    """An answer, as `RTCSessionDescription` is written in JSON."""

    type: str
    sdp: str


class Channels(Protocol):
    """The transport of data channels. All may be called at any time."""

    def admit(self, address: str) -> None:
        """May this address try to open one more? Raises LimitExceeded."""

    def invite(self, id: str, local: str, largest: int) -> str | None:
        """SDP that follows from `id`; None if there is no way to us. `largest`: bytes of a message to us."""

    def accept(self, id: str, text: str, address: str, slug: str, dialect: Geckos) -> None:
        """The answer. Raises ValueError or LimitExceeded."""

    def dismiss(self, id: str) -> None:
        """The client goes, if it is there."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What an id says."""

    epoch: int  # of the room, its last 32 bits
    beside: bool  # came without a ticket


class Offers:
    """Ids of offers, which hold what they were made for; each is taken once, from where it was asked for, in time.

    17 bytes, as 24 letters and digits: epoch of the room 4, beside 1, seconds of `now` modulo 256 1, count 2, HMAC of
    these, the whole of the time and the address 9.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._count = 0
        self._spent: dict[str, float] = {}  # id → when it was answered, in that order

    def issue(self, room: int, beside: bool, address: str, now: float) -> str:
        self._count = (self._count + 1) & 0xFFFF
        seconds = int(now)
        body = b"%b%c%c%b" % (
            (room & 0xFFFFFFFF).to_bytes(4, "big"),
            beside,
            seconds & 0xFF,
            self._count.to_bytes(2, "big"),
        )
        return as_letters(body + self._sign(body, seconds, address))

    def read(self, id: str, address: str, now: float) -> Offered:
        """Raises ValueError if it is not ours, not of this address, or too old."""
        data = as_bytes(id)
        body, age = data[:8], (int(now) - data[5]) & 0xFF
        if age > OFFER_LIFE or not hmac.compare_digest(data[8:], self._sign(body, int(now) - age, address)):
            raise ValueError("no such offer")
        return Offered(int.from_bytes(body[:4], "big"), bool(body[4]))

    def unspent(self, id: str, address: str, now: float) -> Offered:
        """The same, unless it was answered before. Raises ValueError."""
        while self._spent and next(iter(self._spent.values())) < now - 2 * OFFER_LIFE:
            del self._spent[next(iter(self._spent))]
        if id in self._spent:
            raise ValueError("answered before")
        return self.read(id, address, now)

    def spend(self, id: str, now: float) -> None:
        """It was answered. Of offers there is a limit per second, and so of what is remembered."""
        self._spent[id] = now

    def _sign(self, body: bytes, seconds: int, address: str) -> bytes:
        text = b"%b\0%d\0%b" % (body, seconds, network(address).encode())
        return hmac.digest(self._secret, text, "sha256")[:9]


class Signalling:
    """The routes under `/.wrtc/v2`."""

    def __init__(
        self, config: Config, rooms: Rooms, tickets: Tickets, channels: Channels, *, clock: Callable[[], float],
        state: Callable[[], str],
    ) -> None:  # fmt: skip
        """`state()` is `Ready`, `Full` or `Draining`."""
        self._rooms = rooms
        self._tickets = tickets
        self._channels = channels
        self.clock, self._state = clock, state
        self._origins, self._own_hosts = config.origins(), config.own_hosts()
        self._proxies = config.proxies()
        self._offers = Offers(token_bytes(32))

    async def answer(self, request: web.BaseRequest, target: str) -> web.Response:
        """`target` is the request's path and query; all under `/.wrtc/` come here."""
        try:
            return await self._route(request, target)
        except Turned as turned:
            self._rooms.totals.refused[f"signalling_{turned.status}"] += 1
            return plain(turned.status)

    async def _route(self, request: web.BaseRequest, target: str) -> web.Response:
        if request.method == "OPTIONS":
            return plain(200)
        if target == CONNECTIONS and request.method == "POST":
            return await self._connect(request)
        match = OF_ONE.fullmatch(target)
        if match is None or request.method != METHODS[match[2]]:
            raise Turned(404)
        id, route = match.groups()
        if len(id) != ID:
            raise Turned(400)
        if route == "remote-description":
            return await self._take_answer(request, id)
        if route == "close":
            return self._close(request, id)
        self._read(request, id)
        return json_of([])  # all candidates are in the offer

    def _address(self, request: web.BaseRequest) -> str:
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        return client_address(address, request.headers.getall("X-Forwarded-For", []), self._proxies)

    # --- the offer ----------------------------------------------------------------------------------------------------

    async def _connect(self, request: web.BaseRequest) -> web.Response:
        hosts = (request.headers.get("Host", ""), *self._own_hosts)
        if not origin_allowed(request.headers.get("Origin"), hosts, self._origins):
            raise Turned(403)
        if self._state() != "Ready":
            raise Turned(503)
        address = self._address(request)
        await read(request)
        try:
            self._channels.admit(address)
            slug = self._slug(request.headers.get("Authorization", "").strip())
            self._rooms.admit(slug, address, self.clock())
        except LimitExceeded as error:
            raise Turned(error.status) from None
        core = await self._ask(slug)
        beside = not request.headers.get("Authorization", "").strip()
        id = self._offers.issue(core.epoch, beside, address, self.clock())
        name = request.transport.get_extra_info("sockname") if request.transport is not None else None
        sdp = self._channels.invite(id, str(name[0]) if isinstance(name, tuple) else "", core.max_message)
        if sdp is None:
            raise Turned(503)
        return json_of({"userData": {}, "id": id, "localDescription": {"sdp": sdp, "type": "offer"}})

    def _slug(self, ticket: str) -> str:
        """Of the room that the ticket names; without one, the lobby's."""
        if not ticket:
            return LOBBY
        try:
            if len(ticket) > MAX_TOKEN:
                raise ValueError(f"ticket of {len(ticket)} characters, expected at most {MAX_TOKEN}")
            return self._tickets.redeem(ticket, "datachannel", self.clock())
        except ValueError:
            raise Turned(401) from None

    async def _ask(self, slug: str) -> RoomCore:
        """The room, if it would let an anonymous client in now. It is asked again when the seat is taken."""
        told: asyncio.Future[RoomCore] = asyncio.get_running_loop().create_future()

        def verdict(core: RoomCore | None, user: Any, error: SessionError | None) -> None:
            if told.done():  # whoever asked has gone meanwhile
                return
            if core is None:
                told.set_exception(Turned(STATUS.get(error.code if error else 0, 500)))
            elif core.room_class.raw:
                told.set_exception(Turned(403))  # it speaks a WebSocket protocol of its own
            else:
                told.set_result(core)

        self._rooms.ask(slug, Hello(), self.clock(), verdict)
        return await told

    # --- the answer, and the end --------------------------------------------------------------------------------------

    async def _take_answer(self, request: web.BaseRequest, id: str) -> web.Response:
        body = await read(request)
        try:
            found = DESCRIPTION.decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            raise Turned(400) from None
        if found.type != "answer" or not found.sdp:
            raise Turned(400)
        address = self._address(request)
        try:
            offered = self._offers.unspent(id, address, self.clock())
        except ValueError:
            raise Turned(404) from None
        core = next((core for core in self._rooms if core.epoch & 0xFFFFFFFF == offered.epoch), None)
        if core is None or self._state() == "Draining":
            raise Turned(404)
        try:
            self._channels.accept(id, found.sdp, address, core.slug, BESIDE if offered.beside else MEMBER)
        except LimitExceeded as error:
            raise Turned(error.status) from None
        except ValueError:
            raise Turned(400) from None
        self._offers.spend(id, self.clock())
        return plain(200)

    def _read(self, request: web.BaseRequest, id: str) -> None:
        try:
            self._offers.read(id, self._address(request), self.clock())
        except ValueError:
            raise Turned(404) from None

    def _close(self, request: web.BaseRequest, id: str) -> web.Response:
        """The id is the proof: nobody else was told it."""
        self._channels.dismiss(id)
        return plain(200)


STATUS: Final = {Close.REFUSED: 401, Close.FULL: 503, Close.POLICY: 403}
DESCRIPTION: Final = Decoder(Description)


async def read(request: web.BaseRequest) -> bytes:
    """The body. Raises Turned if there is too much of it."""
    if (request.content_length or 0) > MAX_BODY:
        raise Turned(413)
    return await request.read()


def plain(status: int) -> web.Response:
    name = f"{status}: {HTTPStatus(status).phrase}" if status in NAMED else str(status)
    return web.Response(status=status, body=name.encode(), headers=HEADERS | {"Content-Type": "text/plain"})


def json_of(value: Any) -> web.Response:
    return web.Response(body=encode(value), headers=HEADERS | {"Content-Type": "application/json"})


def as_letters(data: bytes) -> str:
    number, letters = int.from_bytes(data, "big"), ""
    for _ in range(ID):
        number, rest = divmod(number, len(ALPHABET))
        letters = ALPHABET[rest] + letters
    return letters


def as_bytes(letters: str) -> bytes:
    """Raises ValueError."""
    number = 0
    for letter in letters:
        number = number * len(ALPHABET) + ALPHABET.index(letter)
    try:
        return number.to_bytes(17, "big")
    except OverflowError:
        raise ValueError("no such offer") from None
