"""Edited pieces come to life while people play: no connection is dropped, and what `keep` names stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Raw

from .pieces import Piece, Pieces, blame
from .protocol import CLASSIC, V1_DIALECT, Message, encode_json, message
from .room import RoomCore
from .rooms import Rooms


class Reloader:
    """Brings what `Pieces.refresh` finds to the rooms that are open, and to the pages in them."""

    def __init__(self, pieces: Pieces, rooms: Rooms, log: Any, *, tells: bool, clock: Callable[[], float]) -> None:
        """`tells`: pages are shown the author's mistakes (in development only)."""
        self._pieces = pieces
        self._rooms = rooms
        self._log = log
        self._tells = tells
        self._clock = clock
        self._serving = {slug: piece.room_class for slug, piece in pieces.table.items()}  # what rooms are made of

    def reload(self) -> None:
        """Looks at the folder, and takes over what was edited."""
        self._rooms.enter(self._clock())
        changes = self._pieces.refresh()
        for piece in changes.code:
            if piece.error is not None:
                self._failed(piece, piece.error)
            else:
                self._swap(piece)
        for slug in changes.pages:
            self._log.info("page changed", piece=slug)
            for core in self._rooms.of_piece(slug):
                tell_page(core)

    def _swap(self, piece: Piece) -> None:
        """All rooms of a piece. If the first cannot go on with the new code, it is taken back for all."""
        old = self._serving.get(piece.slug)
        new = self._rooms.class_of(piece.slug)
        first, *others = self._rooms.of_piece(piece.slug) or (None,)

        def decided(error: BaseException | None) -> None:
            if error is not None:
                piece.room_class = old
                self._failed(piece, self._told(piece, error), error)
                return
            self._serving[piece.slug] = piece.room_class
            if old is not None:
                self._rooms.forget_class(old)
            for core in others:
                self._rooms.swap(core, new, partial(self._one_failed, piece, core))
            self._done(piece)

        if first is None:
            decided(None)
        else:
            self._rooms.swap(first, new, decided)

    def _one_failed(self, piece: Piece, core: RoomCore, error: BaseException | None) -> None:
        if error is not None:
            self._log.error("room keeps the old code", room=core.slug, error=self._told(piece, error), exc_info=error)

    def _done(self, piece: Piece) -> None:
        piece.error = None
        self._log.info("piece loaded", piece=piece.slug, version=piece.version)
        self._show(piece, None)

    def _failed(self, piece: Piece, line: str, error: BaseException | None = None) -> None:
        piece.error = line
        self._log.error("the code as it was goes on", piece=piece.slug, error=line, exc_info=error)
        self._show(piece, line)

    def _show(self, piece: Piece, line: str | None) -> None:
        """Pages lay it over what they show, or take it away again."""
        if self._tells:
            for core in self._rooms.of_piece(piece.slug):
                core.outbox.announce(V1_DIALECT, message("session:fault", {"error": line}))

    @staticmethod
    def _told(piece: Piece, error: BaseException) -> str:
        return blame(piece.code, error) if piece.code is not None else str(error)


def tell_page(core: RoomCore) -> None:
    """Its page, or a file of it, is another: load it again. Classic pages know the name of the piece."""
    news = {"piece": core.slug}
    core.outbox.announce(V1_DIALECT, message("session:reload", news))
    core.outbox.announce(CLASSIC, Message("reload", Raw(encode_json(news)), "local"))
