"""Finds the pieces of a folder and loads their room classes, by slug. A slug never becomes a path: it is looked up.

A piece `field` is `field.py` (a Room class), `field.html` (its page), or both. Code may import modules of its folder
whose names begin with `_`, and packages there; each piece has its own copy of them, so an edit reaches all who use it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final

from ..handlers import Routes
from ..protocol import PieceError, slug_from_path
from ..room import Room

ROUTES: Final = frozenset(
    {"session", "session.js", "session-dev.js", "session.d.ts", "health", "status", "metrics", "check", "favicon.ico"}
)
ASSETS: Final = {
    ".js", ".mjs", ".css", ".json", ".txt", ".svg", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico",
    ".mp3", ".ogg", ".wav", ".mp4", ".webm", ".woff2", ".wasm", ".glb",
}  # fmt: skip
BUILT_IN: Final = Path(__file__).parent
HELPERS: Final[set[str]] = set()  # names of modules that pieces have imported from their folders

Stamp = tuple[int, int]  # by which an edited file is known: nanoseconds of its last change, bytes


@dataclass(slots=True)
class Piece:
    """One entry of the table. `error` is one line for the author: why the code as it is now cannot be used. Then
    `room_class` is that of the last code which could, if there was any."""

    slug: str
    code: Path | None = None
    page: Path | None = None
    room_class: type[Room] | None = None
    error: str | None = None
    version: int = 0  # how often its code was loaded
    stamps: dict[Path, Stamp] = field(default_factory=dict)  # of the files that its code came from


@dataclass(slots=True)
class Changes:
    """What a look at the folder has found. `code`: pieces that were loaded anew, or could not be; `pages`: slugs whose
    page, or a file that it loads, is another."""

    code: list[Piece]
    pages: set[str]


class Pieces:
    """The table of a folder's pieces, and of the built-in ones where the folder has none of that name."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.table: dict[str, Piece] = {}
        self.assets: dict[str, Path] = {}  # what pages load from beside them: path below the folder → file
        self._stamps: dict[Path, Stamp] = {}  # of pages and assets
        self.refresh()

    def room_class(self, slug: str) -> type[Room] | None:
        """The class of a piece, None if it has no code. Raises PieceError."""
        piece = self.table.get(slug)
        if piece is None:
            return None
        if piece.room_class is None and piece.error is not None:
            raise PieceError(piece.error)
        return piece.room_class

    def page(self, slug: str) -> Path | None:
        piece = self.table.get(slug)
        return None if piece is None else piece.page

    def errors(self) -> list[str]:
        return [piece.error for piece in self.table.values() if piece.error is not None]

    def refresh(self) -> Changes:
        """Looks at the folder again, and loads what was edited."""
        before, self.table, self.assets = self.table, {}, {}
        for place in (BUILT_IN, self.folder):
            if place is not None:
                self._scan(place)
        gone = {slug: Piece(slug) for slug in before if slug not in self.table}
        code = []
        for slug, found in (self.table | gone).items():
            known = before.get(slug, found)
            if self._is_news(known, found, known is found):
                self._load(known)
                code.append(known)
            if slug in self.table:
                self.table[slug] = known
        return Changes(code, self._changed_pages())

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

    @staticmethod
    def _is_news(known: Piece, found: Piece, is_new: bool) -> bool:
        """Whether its code must be loaded. `known` becomes as `found`."""
        before, known.code, known.page = known.code, found.code, found.page
        if known.code is None:
            known.error = found.error
            return not is_new and before is not None and found.error is None
        if is_new or before != known.code:
            return True
        files = known.stamps if known.error is None else scripts(known.code)
        return known.stamps != {path: stamp(path) for path in files}

    def _load(self, piece: Piece) -> None:
        piece.version += 1
        if piece.code is None:  # its code is gone: it is a relay now
            piece.room_class, piece.stamps = None, {}
            return
        try:
            piece.room_class, files = load_class(piece.slug, piece.code)
            piece.error = None
        except PieceError as error:  # whatever is edited next may mend it
            piece.error, files = str(error), scripts(piece.code)
        piece.stamps = {path: stamp(path) for path in files}

    def _changed_pages(self) -> set[str]:
        pages = {piece.page: {piece.slug} for piece in self.table.values() if piece.page is not None}
        everybody = {slug for slugs in pages.values() for slug in slugs}
        for name, path in self.assets.items():
            owner = name.partition("/")[0].partition(".")[0]
            pages[path] = {owner} if owner in everybody else everybody
        before, self._stamps = self._stamps, {path: stamp(path) for path in pages}
        changed = (slugs for path, slugs in pages.items() if path in before and before[path] != self._stamps[path])
        return set().union(*changed)


def scripts(code: Path) -> list[Path]:
    """All that a piece's code could import from its folder."""
    return sorted(code.parent.rglob("*.py"))


def stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:  # it is gone
        return 0, 0
    return status.st_mtime_ns, status.st_size


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


def load_class(slug: str, path: Path) -> tuple[type[Room], list[Path]]:
    """Imports a piece's file and finds its one Room class; also the files that it came from. Raises PieceError with
    file, line and reason."""
    name = f"_pieces.{slug}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    with fresh_imports(path.parent) as helpers:
        try:
            sys.modules[name] = module  # dataclasses and type hints look their module up
            spec.loader.exec_module(module)
            room_class = only_class(module, slug, path)
            Routes(room_class, Room)  # finds mistakes in handlers now, not when the first client comes
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            if before is not None:
                sys.modules[name] = before
            raise error if isinstance(error, PieceError) else PieceError(blame(path, error)) from error
        return room_class, [path, *helpers()]


@contextmanager
def fresh_imports(folder: Path) -> Iterator[Callable[[], list[Path]]]:
    """Modules of this folder are imported anew within, not those that another piece has; yields which they are."""
    folder = folder.absolute()  # as they say where they are from
    others = {name: sys.modules.pop(name) for name in HELPERS & set(sys.modules)}
    importlib.invalidate_caches()
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a cache is known by seconds, edits are faster
    sys.path.append(str(folder))
    before = set(sys.modules)

    def mine() -> list[str]:
        return [name for name in set(sys.modules) - before if is_below(sys.modules[name], folder)]

    try:
        yield lambda: [Path(str(sys.modules[name].__file__)) for name in mine()]
    finally:
        HELPERS.update(mine())
        for name, module in others.items():  # types in them look their module up by its name, perhaps much later
            sys.modules.setdefault(name, module)
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes


def is_below(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    ours = module.__name__.startswith(("_pieces.", "session_server."))
    return isinstance(file, str) and file.startswith(f"{folder}{os.sep}") and not ours


def only_class(module: ModuleType, slug: str, path: Path) -> type[Room]:
    """Raises PieceError."""
    classes = list(
        {
            value: None
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Room) and value.__module__ == module.__name__
        }
    )
    if len(classes) > 1:
        classes = [c for c in classes if c.__name__.lower() == slug.replace("-", "").replace("_", "").lower()]
    if len(classes) != 1:
        raise PieceError(f"{path}: found no single Room class, expected one (or one of several named like the file)")
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
