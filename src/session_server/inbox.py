"""What becomes of a client's message: relayed, handled by the author's code, answered, or refused. No sockets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec import UNSET

from .calls import Call, Calls
from .handlers import Handler, InvalidContent, Kind, read_any
from .limits import Bucket
from .outbox import Outbox, Problem, Seat
from .protocol import (
    V1_DIALECT,
    Answer,
    AnyMessage,
    Ask,
    Binary,
    Close,
    Message,
    Ping,
    ProtocolError,
    check_type,
    decode_control,
    message,
)
from .services import Services

CONTROL, RELAYED, TO_OTHERS = Kind.CONTROL, Kind.RELAYED, Kind.TO_OTHERS  # an enumeration is slow to ask


class Inbox:
    """What the clients of one room say."""

    __slots__ = ("_calls", "_confirmed", "_expel", "_leave", "_outbox", "_services", "_slug")

    def __init__(
        self, slug: str, services: Services, outbox: Outbox, calls: Calls, *,
        confirmed: Callable[[Any], None], leave: Callable[[Any], None], expel: Callable[[Any, int, str], None],
    ) -> None:  # fmt: skip
        """`confirmed`: a client has its welcome, since it speaks; `leave`: it said that it goes; `expel`: it must."""
        self._slug = slug
        self._services = services
        self._outbox = outbox
        self._calls = calls
        self._confirmed, self._leave, self._expel = confirmed, leave, expel

    def receive(self, client: Seat, item: AnyMessage, size: int, now: float) -> None:
        """One message of a client, `size` bytes on the wire."""
        services = self._services
        services.now = now
        services.totals.messages_in += 1
        services.totals.bytes_in += size
        kind = self._calls.routes.kind(item.type)
        if client._resume_before:  # it has the welcome with the new token
            self._confirmed(client)
        if item.reliable is not False:
            item.reliable = item.n = UNSET
            if kind is not CONTROL or item.type == "session:ask":
                client._taken += 1
        if not client._meter.take(now, size):
            self._over(client, item, now)
        elif item.reliable is False and not client.is_news(item):
            return
        elif kind is RELAYED or kind is TO_OTHERS:
            self._relay(client, item, kind)
        elif kind is CONTROL and self._speaks_v1(client):
            self._receive_control(client, item)
        else:
            self._dispatch(client, item, kind, None)

    def _relay(self, client: Seat, item: AnyMessage, way: Kind) -> None:
        item.id = client.id
        link = client._link
        to_all = way is RELAYED and link is not None and link.dialect.reaches_sender(item.type)
        self._outbox.broadcast(item, None if to_all else client)

    def _speaks_v1(self, client: Seat) -> bool:
        return client._link is None or client._link.dialect is V1_DIALECT

    def _dispatch(self, client: Seat, item: AnyMessage, kind: Kind, ask: int | None) -> None:
        """A message that is within its rate, and not merely relayed: handled or refused."""
        type = item.type
        if kind is Kind.HANDLED:
            handler = self._calls.routes.handler(type)
            assert handler is not None, "so it is of this kind"
            self._handle(client, handler, item, ask)
        elif kind is Kind.OWNED or kind is CONTROL:
            self._services.totals.refused["server_owned"] += 1
        elif "on_message" in self._calls.routes.overrides and kind is Kind.OTHER:
            self._pass_on(client, item, ask)
        else:
            self._services.totals.refused["unknown"] += 1
            self._outbox.answer(
                client, type, ask, None, Problem("unknown", f"room {self._slug!r} knows no type {type!r}")
            )

    def _handle(self, client: Seat, handler: Handler, item: AnyMessage, ask: int | None) -> None:
        if handler.rate and not self._within(client, handler):
            self._services.totals.refused["type_rate"] += 1
            if item.reliable is not False:
                problem = Problem("rate", f"more than {handler.rate:g} {handler.type!r} per second")
                self._outbox.answer(client, item.type, ask, None, problem)
            return
        args: tuple[Any, ...] = (client,)
        if handler.read is not None:
            try:
                args = (client, handler.read(item), *handler.parts)
            except InvalidContent as error:
                self._invalid(client, item.type, ask, error)
                return
            except Exception as error:  # a check of the author's own
                self._calls.fail(Call(handler.name, args, client, item.type, ask), error)
                return
        then = None if handler.relay is None else partial(self._relay, client, item, handler.relay)
        self._calls.call(Call(handler.name, args, client, item.type, ask, then))

    def _within(self, client: Seat, handler: Handler) -> bool:
        if client._rates is None:
            client._rates = {}
        bucket = client._rates.get(handler.type)
        if bucket is None:
            bucket = client._rates[handler.type] = Bucket(handler.rate, max(1.0, handler.rate))
        return bucket.take(self._services.now)

    def _pass_on(self, client: Seat, item: AnyMessage, ask: int | None) -> None:
        try:
            content = read_any(item)
        except InvalidContent as error:
            self._invalid(client, item.type, ask, error)
            return
        plain = Message(item.type, content, client.id, item.reliable is not False)
        self._calls.call(Call("on_message", (client, plain), client, item.type, ask))

    def _invalid(self, client: Seat, type: str, ask: int | None, error: InvalidContent) -> None:
        self._services.totals.refused["invalid"] += 1
        reason = f"{error} (room {self._slug!r}, client {client.id})"
        self._outbox.answer(client, type, ask, None, Problem("invalid", reason))

    def _over(self, client: Seat, item: AnyMessage, now: float) -> None:
        """Over a rate: what may be lost is shed, the rest refused with an error; after 10 s in a row, 1008."""
        self._refuse(client, now)
        if item.reliable is False or client._link is None:
            return
        config = self._services.config
        limit = f"{config.message_rate:g} messages and {config.byte_rate:g} bytes per second"
        problem = Problem("rate", f"over the rate, expected at most {limit}")
        if item.type == "session:leave" and self._speaks_v1(client):
            self._leave(client)
        elif item.type == "session:ask" and isinstance(item, Message):
            with suppress(ProtocolError):
                self._outbox.answer(client, None, decode_control(item, Ask).ask, None, problem)
        elif not client._meter.tells(now):
            return
        elif item.type == "session:ping" and isinstance(item, Message) and self._speaks_v1(client):
            self._receive_control(client, item)  # it says what was received, and that is what a sender waits for
        else:
            self._outbox.answer(client, item.type, None, None, problem)

    def _refuse(self, client: Seat, now: float) -> None:
        """One more refusal by rate."""
        self._services.now = now
        self._services.totals.refused["rate"] += 1
        client._meter.refuse(now)
        client.was_refused = True
        if client._meter.over_too_long(now):
            self._services.totals.refused["rate_closed"] += 1
            self._expel(client, Close.POLICY, "over the rate for 10 s")

    def _receive_control(self, client: Seat, item: AnyMessage) -> None:
        """`session:*` of a session.v1 client. Raises ProtocolError on a content of the wrong shape."""
        if isinstance(item, Binary):
            self._services.totals.refused["server_owned"] += 1
        elif item.type == "session:ask":
            ask = decode_control(item, Ask)
            try:
                check_type(ask.type)
            except ValueError as error:
                raise ProtocolError(Close.NOT_MESSAGES, f"not a message: {error}") from None
            self._dispatch(client, Message(ask.type, ask.content), self._calls.routes.kind(ask.type), ask.ask)
        elif item.type == "session:ping":
            ping = decode_control(item, Ping)
            content = {"t": ping.t, "time": self._services.now, "received": client._taken}
            self._outbox.control(client, message("session:pong", content))
        elif item.type == "session:ack":
            pass  # the side link itself shows what has arrived
        elif item.type == "session:answer":
            try:
                self._services.answer(client, decode_control(item, Answer).sdp)
            except ValueError as error:
                self._services.totals.refused["answer"] += 1
                self._outbox.answer(client, item.type, None, None, Problem("invalid", str(error)))
        elif item.type == "session:leave":
            self._leave(client)
        else:
            self._services.totals.refused["server_owned"] += 1

    def admits(self, client: Seat, size: int, now: float) -> bool:
        """Something small that is no message (a ping): may the client afford it? Refusals count as for messages."""
        if client._meter.take(now, size):
            return True
        self._refuse(client, now)
        return False

    def receive_raw(self, client: Seat, data: str | bytes, size: int, now: float) -> None:
        """One frame in a room with `raw = True`."""
        services = self._services
        services.now = now
        services.totals.messages_in += 1
        services.totals.bytes_in += size
        if self.admits(client, size, now):
            self._calls.call(Call("on_raw", (client, data), client))

    def complain(self, client: Seat, code: str, reason: str) -> None:
        """`session:error` about what could not even be read."""
        self._outbox.answer(client, None, None, None, Problem(code, reason))

    def acknowledge(self, client: Seat, received: int) -> None:
        """Tells a client, on its reliable link, how many messages have come on its side link."""
        self._outbox.control(client, message("session:ack", {"received": received}))
