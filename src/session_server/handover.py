"""The rooms of a process, in bytes: another process goes on with them, under the same sockets. Nobody's seat is lost.

What is carried: who has which seat and id, the tokens by which they come back, what was counted of both directions,
and the attributes that `keep` names, as far as msgpack can write them: tuples and sets come back as lists, objects as
dicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct
from msgspec.msgpack import Decoder, Encoder

from .limits import Meter
from .protocol import PieceError
from .room import Client, RoomCore, User
from .rooms import Rooms

encode: Final = Encoder(enc_hook=lambda value: vars(value)).encode


class SeatState(Struct):
    """One client. `offset`: see Outbox.seq; `numbers`: the last of its messages that may be lost, by type."""

    id: int
    user: User | None
    name: str | None
    data: Any
    tokens: tuple[str, str]  # to come back with: the last that surely arrived, the last
    taken: int
    offset: int
    numbers: dict[str, int] | None


class RoomState(Struct):
    slug: str
    epoch: int
    next_id: int
    total: int
    numbers: dict[str, int]
    seats: list[SeatState]
    keep: dict[str, Raw]


def pack(rooms: Iterable[RoomCore]) -> bytes:
    """All rooms with somebody in them. Nothing may be written or handled after it."""
    return encode([room_state(core) for core in rooms if core.clients])


def room_state(core: RoomCore) -> RoomState:
    keep = {}
    for name in core.room_class.keep:
        if name in vars(core.instance):
            try:
                keep[name] = Raw(encode(getattr(core.instance, name)))
            except (TypeError, ValueError, RecursionError, OverflowError) as error:
                core.log.warning("cannot be carried over", attribute=name, error=str(error))
    seats = [
        SeatState(
            one.id,
            one.user,
            one.name,
            one.data,
            (one._resume_before, one._resume),
            one._taken,
            one._offset,
            one._numbers,
        )
        for one in core.clients.values()
        if not one.beside
    ]
    return RoomState(core.slug, core.epoch, core._next_id, core.outbox.total, core.outbox.numbers, seats, keep)


def unpack(rooms: Rooms, data: bytes, log: Any) -> None:
    """Makes these rooms here. A room whose code cannot be used any more is left out: its clients come as new ones.
    Raises msgspec.MsgspecError if `data` is of another version."""
    for state in Decoder(list[RoomState]).decode(data):
        try:
            core = rooms.restore(state.slug, state.epoch)
        except PieceError as error:
            log.error("room cannot go on", room=state.slug, error=str(error))
            continue
        core.calls.after_this(partial(inherit, core, state))
        for seat in state.seats:
            take_seat(core, seat)
        core._next_id, core.outbox.total, core.outbox.numbers = state.next_id, state.total, state.numbers


def inherit(core: RoomCore, state: RoomState) -> Any:
    """What `keep` names, and then `on_reload`, as after an edit."""
    old = {name: msgspec.msgpack.decode(raw, strict=False) for name, raw in state.keep.items()}
    for name, value in old.items():
        setattr(core.instance, name, value)
    return core.instance.on_reload(old)


def take_seat(core: RoomCore, seat: SeatState) -> None:
    """It is kept for `grace` seconds, as if the link had dropped now."""
    client = Client(seat.id, core, Meter(core._allowance), seat.user, seat.name, seat.data)
    client._taken, client._offset, client._numbers = seat.taken, seat.offset, seat.numbers
    client._resume_before, client._resume = seat.tokens
    core.readmit(client)
