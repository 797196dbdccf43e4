"""Finds the pieces of a folder and loads their room classes, by slug. A slug never becomes a path: it is looked up.

A piece `field` is `field.py` (a Room class), `field.html` (its page), or both.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..handlers import Routes
from ..protocol import PieceError, slug_from_path
from ..room import Room

ROUTES: Final = frozenset(
    {"session", "session.js", "session.d.ts", "health", "status", "metrics", "check", "favicon.ico"}
)
ASSETS: Final = {
    ".js", ".mjs", ".css", ".json", ".txt", ".svg", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico",
    ".mp3", ".ogg", ".wav", ".mp4", ".webm", ".woff2", ".wasm", ".glb",
}  # fmt: skip
BUILT_IN: Final = Path(__file__).parent


@dataclass(slots=True)
class Piece:
    """One entry of the table. `error` is one line for the author: why there is no class although there is code."""

    slug: str
    code: Path | None = None
    page: Path | None = None
    room_class: type[Room] | None = None
    error: str | None = None


class Pieces:
    """The table of a folder's pieces, and of the built-in ones where the folder has none of that name."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.table: dict[str, Piece] = {}
        self.assets: dict[str, Path] = {}  # what pages load from beside them: path below the folder → file
        for place in (BUILT_IN, folder):
            if place is not None:
                self._scan(place)
        for piece in self.table.values():
            self._load(piece)

    def room_class(self, slug: str) -> type[Room] | None:
        """The class of a piece, None if it has no code. Raises PieceError."""
        piece = self.table.get(slug)
        if piece is None:
            return None
        if piece.error is not None:
            raise PieceError(piece.error)
        return piece.room_class

    def page(self, slug: str) -> Path | None:
        piece = self.table.get(slug)
        return None if piece is None else piece.page

    def errors(self) -> list[str]:
        return [piece.error for piece in self.table.values() if piece.error is not None]

    def _scan(self, folder: Path) -> None:
        found: dict[str, Piece] = {}
        for path in sorted(folder.iterdir()):
            slug = path.stem
            if path.suffix not in {".py", ".html"} or slug.startswith(("_", ".")) or not path.is_file():
                continue
            piece = found.setdefault(slug, Piece(slug))
            if error := name_error(slug, path):
                piece.error = error
            elif path.suffix == ".py":
                piece.code = path
            else:
                piece.page = path
        for slug, piece in found.items():  # a page alone leaves the code of a built-in piece as it is
            known = self.table.get(slug)
            if known is not None and piece.code is None:
                known.page, known.error = piece.page, piece.error
            else:
                self.table[slug] = piece
        self.assets |= {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.suffix in ASSETS and path.is_file() and is_public(path, folder)
        }

    def _load(self, piece: Piece) -> None:
        if piece.code is not None and piece.error is None:
            try:
                piece.room_class = load_class(piece.slug, piece.code)
            except PieceError as error:
                piece.error = str(error)


def is_public(path: Path, folder: Path) -> bool:
    """Nothing hidden, and nothing that a link brings in from elsewhere."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.resolve().is_relative_to(folder.resolve())


def name_error(slug: str, path: Path) -> str | None:
    if slug in ROUTES:
        return f"{path}: {slug!r} is a page of the server itself, choose another name"
    try:
        if slug_from_path(slug) != slug or any(c in "~:/" for c in slug):
            raise ValueError("~, : and / are not allowed in it")
    except ValueError as error:
        return f"{path}: the file's name is no slug: {error}"
    return None


def load_class(slug: str, path: Path) -> type[Room]:
    """Imports a piece's file and finds its one Room class. Raises PieceError with file, line and reason."""
    name = f"_pieces.{slug}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PieceError(blame(path, error)) from error
    classes = list(
        {
            value: None
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Room) and value.__module__ == name
        }
    )
    if len(classes) > 1:
        classes = [c for c in classes if c.__name__.lower() == slug.replace("-", "").replace("_", "").lower()]
    if len(classes) != 1:
        raise PieceError(f"{path}: found no single Room class, expected one (or one of several named like the file)")
    Routes(classes[0], Room)  # finds mistakes in handlers now, not when the first client comes
    return classes[0]


def blame(path: Path, error: BaseException) -> str:
    """`file:line: Error: text`, of the last line inside the piece."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(path.name) and os.path.samefile(frame.filename, path)
    ]
    return f"{path}:{lines[-1] if lines else 1}: {type(error).__name__}: {error}"
