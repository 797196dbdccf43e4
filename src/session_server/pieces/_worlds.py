"""Worlds of the lobby: who is in one, where they stand and what they show; and the ghosts of those who went elsewhere.

A world is named by its piece, `world:{piece}:*`. The wire is in docs/reference/wire.md (Worlds).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Final

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType
from msgspec.json import decode

from session_server import Client, Refused, Room, Subscription, Timer, on

GHOST_FOR: Final = 5.0  # seconds that a ghost is shown, anew with each sign of life from elsewhere
KEEP_ALIVE: Final = "*keep-alive*"  # as a slug: still where it was
SHARED: Final = frozenset({"field", "horizon"})  # pieces where whoever left another world is seen again: no ghost then
UNFILTERED: Final = "laer-klokken"  # a piece whose texts are left as they are

MAX_WORLDS: Final = 4  # that one client is in; a page is in one
MAX_GHOSTS: Final = 256  # in a room; beyond that people simply leave
MAX_ENTRY: Final = 2048  # bytes of JSON that a client joins with
MAX_POS: Final = 256  # bytes of JSON
MAX_SHOWING: Final = 4096  # bytes of JSON
MAX_TEXT: Final = 1000  # characters

Handle = Annotated[str, Meta(min_length=1, max_length=64)]  # a label: what a page says of itself


class Joining(Struct):
    """What must be in the content of a join; the rest is the piece's."""

    handle: Handle


class Move(Struct):
    pos: Raw | UnsetType = UNSET


class Writing(Struct):
    text: str


@dataclass(slots=True, eq=False)
class Figure:
    """Somebody in a world, or the ghost of somebody who was."""

    handle: str
    user: str | None  # the verified user, if there is one
    shown: dict[str, Any]  # as the list shows it: what it joined with, unread, `pos`, `showing`, `ghost`
    timer: Timer | None = None  # of a ghost
    ear: Subscription | None = None  # of a ghost: it hears where its handle is now


class Worlds(Room):
    """`world:*`. What has no handler here goes to the others, unread."""

    others: ClassVar[tuple[str, ...]] = (*Room.others, "world:*")
    server_only: ClassVar[tuple[str, ...]] = ("world:*:list", "world:*:ghost", "world:*:kick", "world:*:slug")
    keep = ("worlds", "inside")

    def on_create(self) -> Any:
        self.worlds: dict[str, dict[int, Figure]] = {}  # piece → client id → figure
        self.inside: dict[int, set[str]] = {}  # client id → pieces
        self._ghosts = 0
        return super().on_create()

    def on_reload(self, old: Any) -> Any:
        for piece, world in tuple(self.worlds.items()):  # their timers were the old instance's
            for id in [id for id, figure in world.items() if figure.timer is not None]:
                self._kick(piece, id)
        self._ghosts = 0
        return super().on_reload(old)

    def clean(self, text: str) -> str:
        """The filter of what people write, for a lobby of one's own: returns the text that all may read."""
        return text

    @on("world:*:join", rate=2, relay=True)
    def join_world(self, client: Client, content: Raw, piece: str) -> None:
        if len(content) > MAX_ENTRY:
            raise Refused(f"joins with {len(content)} bytes, expected at most {MAX_ENTRY}")
        try:
            handle, shown = decode(content, type=Joining).handle, decode(bytes(content), type=dict[str, Raw])
        except (DecodeError, RecursionError) as error:
            raise Refused(f"joins without a handle: {error}") from None
        mine = self.inside.setdefault(client.id, set())
        if piece not in mine and len(mine) >= MAX_WORLDS:
            raise Refused(f"is in {len(mine)} worlds, expected at most {MAX_WORLDS}")
        mine.add(piece)
        self._lay(piece, handle, client)
        world = self.worlds.setdefault(piece, {})
        figures = {str(id): figure.shown for id, figure in world.items() if id != client.id}
        client.send(f"world:{piece}:list", figures, id=client.id)
        world[client.id] = Figure(handle, client.user.id if client.user else None, shown)

    @on("world:*:move", relay=True)
    def move(self, client: Client, content: Move, piece: str) -> None:
        if content.pos is UNSET:
            return
        if len(content.pos) > MAX_POS:
            raise Refused(f"pos of {len(content.pos)} bytes, expected at most {MAX_POS}")
        self._note(client, piece, "pos", content.pos)

    @on("world:*:show", relay=True)
    def show(self, client: Client, content: Raw, piece: str) -> None:
        if len(content) > MAX_SHOWING:
            raise Refused(f"shows {len(content)} bytes, expected at most {MAX_SHOWING}")
        self._note(client, piece, "showing", content)

    @on("world:*:hide", relay=True)
    def hide(self, client: Client, content: Any, piece: str) -> None:
        self._note(client, piece, "showing", None)

    @on("world:*:write")
    def write(self, client: Client, content: str | Writing, piece: str) -> None:
        text = content if isinstance(content, str) else content.text
        if len(text) > MAX_TEXT:
            raise Refused(f"writes {len(text)} characters, expected at most {MAX_TEXT}")
        if piece != UNFILTERED:
            text = self.clean(text)
        told = text if isinstance(content, str) else {"text": text}
        self.broadcast(f"world:{piece}:write", told, id=client.id)

    def _note(self, client: Client, piece: str, key: str, value: Any) -> None:
        """For those who join later. Who has not joined is relayed, but not remembered."""
        figure = self.worlds.get(piece, {}).get(client.id)
        if figure is not None:
            # a copy: as it came, it would keep the whole message
            figure.shown[key] = value if value is None else Raw(bytes(value))

    # --- ghosts -------------------------------------------------------------------------------------------------------

    def on_leave(self, client: Client, reason: str) -> Any:
        """Who has a handle, and is seen by others, becomes a ghost for a while: perhaps it only went to another piece,
        or comes back."""
        for piece in self.inside.pop(client.id, ()):
            world = self.worlds.get(piece, {})
            figure = world.get(client.id)
            if figure is None:
                continue
            seen = figure.handle.startswith("@") and len(world) > 1 and reason in ("left", "lost")
            if seen and self._ghosts < MAX_GHOSTS:
                client.lingers = True
                self._haunt(piece, client.id, figure)
            else:
                self._remove(piece, client.id)
        return super().on_leave(client, reason)

    def _haunt(self, piece: str, id: int, figure: Figure) -> None:
        self._ghosts += 1
        figure.shown["ghost"] = True
        figure.timer = self.after(GHOST_FOR, partial(self._kick, piece, id))
        figure.ear = self.subscribe(f"slug:{figure.handle}", partial(self._seen, piece, id, figure))
        self.broadcast(f"world:{piece}:ghost", {}, id=id)

    def _seen(self, piece: str, id: int, figure: Figure, told: dict[str, Any]) -> None:
        """Somebody with the ghost's handle is at `told["slug"]`. Of a verified user, only that user counts."""
        if figure.user not in (None, told["user"]):
            return
        slug = told["slug"]
        there = slug.partition("~")[0].partition(":")[0]
        if there in SHARED or there in self.worlds:
            self._kick(piece, id)
            return
        if figure.timer is not None:
            figure.timer.cancel()
        figure.timer = self.after(GHOST_FOR, partial(self._kick, piece, id))
        if slug != KEEP_ALIVE:
            self.broadcast(f"world:{piece}:slug", {"handle": figure.handle, "slug": slug}, id=id)

    def _lay(self, piece: str, handle: str, client: Client) -> None:
        """Whoever comes back has no ghost any more."""
        user = client.user.id if client.user else None
        for id, figure in tuple(self.worlds.get(piece, {}).items()):
            if figure.timer is not None and figure.handle == handle and figure.user in (None, user):
                self._kick(piece, id, client)

    def _kick(self, piece: str, id: int, exclude: Client | None = None) -> None:
        self._ghosts -= 1
        self._remove(piece, id)
        self.broadcast(f"world:{piece}:kick", {}, exclude, id=id)

    def _remove(self, piece: str, id: int) -> None:
        world = self.worlds[piece]
        figure = world.pop(id)
        for one in (figure.timer, figure.ear):
            if one is not None:
                one.cancel()
        if not world:
            del self.worlds[piece]
