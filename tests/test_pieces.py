"""A folder becomes a table of pieces: what is found in it, and what its author is told when something is wrong."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from playing import Playing
from session_server.pieces import BUILT_IN, ROUTES, Pieces
from session_server.protocol import PieceError
from session_server.room import Relay

ROOM = """
    from session_server import Client, Room, on

    class {name}(Room):
        @on("ping")
        def ping(self, client: Client, n: int) -> int:
            return n + 1
"""


def room(name: str = "Piece") -> str:
    return ROOM.format(name=name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, **files: str) -> None:
    """`field_py="…"` is the file field.py."""
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(textwrap.dedent(text))


def error_of(folder: Path, slug: str) -> str:
    pieces = Pieces(folder)
    with pytest.raises(PieceError) as error:
        pieces.room_class(slug)
    assert str(error.value) in pieces.errors()
    line = str(error.value)
    assert "\n" not in line
    return line


# --- what is found ----------------------------------------------------------------------------------------------------


def test_a_piece_is_code_a_page_or_both(folder: Path) -> None:
    write(folder, both_py=room(), both_html="<p>", code_py=room(), page_html="<p>")
    pieces = Pieces(folder)
    found = {slug: (piece.code is not None, piece.page is not None) for slug, piece in pieces.table.items()}
    assert found == {"both": (True, True), "code": (True, False), "page": (False, True), "lobby": (True, False)}
    assert pieces.errors() == []
    assert pieces.page("both") == folder / "both.html" and pieces.page("code") is None is pieces.page("nowhere")
    assert pieces.room_class("page") is None is pieces.room_class("nowhere")
    assert pieces.room_class("code").__name__ == "Piece"  # type: ignore[union-attr]


def test_what_is_no_piece_is_passed_over(folder: Path) -> None:
    write(folder, _helper_py="raise SystemExit(1)", __init___py="", notes_txt="", data_json="{}")
    (folder / ".hidden.py").write_text("raise SystemExit(1)")
    (folder / "drawer.py").mkdir()
    (folder / "inner").mkdir()
    (folder / "inner" / "deep.py").write_text("raise SystemExit(1)")
    assert set(Pieces(folder).table) == {"lobby"}


def test_without_a_folder_there_is_the_lobby() -> None:
    pieces = Pieces(None)
    lobby = pieces.room_class("lobby")
    assert set(pieces.table) == {"lobby"} and lobby is not None
    assert (lobby.relay, lobby.max_message) == (True, 2**20)
    assert {path.stem for path in BUILT_IN.glob("[!_]*.py")} == {"lobby"}


def test_a_lobby_of_ones_own_replaces_the_built_in_one(folder: Path) -> None:
    write(folder, lobby_py=room("Mine"))
    assert Pieces(folder).room_class("lobby").__name__ == "Mine"  # type: ignore[union-attr]


def test_a_page_for_the_lobby_leaves_its_code_as_it_is(folder: Path) -> None:
    write(folder, lobby_html="<p>")
    pieces = Pieces(folder)
    assert pieces.page("lobby") == folder / "lobby.html"
    assert pieces.room_class("lobby") is not None


def test_a_slug_is_looked_up_and_never_becomes_a_path(folder: Path) -> None:
    (folder / "pieces").mkdir()
    write(folder, secret_py=room(), secret_html="<p>")
    pieces = Pieces(folder / "pieces")
    for slug in ("../secret", "..", "/etc/passwd", str(folder / "secret"), "secret", "lobby.py", "", "__init__"):
        assert pieces.room_class(slug) is None and pieces.page(slug) is None


def test_rooms_of_a_loaded_piece_can_be_played(folder: Path) -> None:
    write(folder, count_py=room())
    play = Playing(Pieces(folder))
    assert play.join("count~1").ask("ping", 4).value == 5
    assert isinstance(play.rooms.class_of("nowhere"), type) and play.rooms.class_of("nowhere") is Relay


# --- which class ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "name"), [("field", "Field"), ("field", "FIELD"), ("my-field", "MyField"), ("my_field_2", "Myfield2")]
)
def test_of_several_rooms_the_one_named_like_the_file_is_taken(folder: Path, slug: str, name: str) -> None:
    write(folder, **{f"{slug}_py": room("Base") + room(name) + room("Another")})
    assert Pieces(folder).room_class(slug).__name__ == name  # type: ignore[union-attr]


@pytest.mark.parametrize("code", ["", "x = 1", "from session_server import Room", room("A") + room("B")])
def test_no_class_or_too_many_is_an_error(folder: Path, code: str) -> None:
    write(folder, field_py=code)
    line = error_of(folder, "field")
    assert line.startswith(str(folder / "field.py")) and "expected one" in line


def test_an_imported_room_is_not_the_files_own(folder: Path) -> None:
    write(folder, field_py="from session_server.room import Relay\n" + textwrap.dedent(room("Field")))
    assert Pieces(folder).room_class("field").__name__ == "Field"  # type: ignore[union-attr]


def test_a_second_name_for_the_same_class_is_no_second_class(folder: Path) -> None:
    write(folder, field_py=textwrap.dedent(room("Cursors")) + "\nMain = Cursors\n")
    assert Pieces(folder).room_class("field").__name__ == "Cursors"  # type: ignore[union-attr]


def test_annotations_may_be_strings_and_name_the_files_own_classes(folder: Path) -> None:
    """`from __future__ import annotations`, dataclasses, and a class that is defined further down."""
    write(
        folder,
        field_py="""
            from __future__ import annotations

            from dataclasses import dataclass, field

            from session_server import Client, Room, on


            class Field(Room):
                def on_create(self) -> None:
                    self.steps: list[Step] = []

                @on("step")
                def step(self, client: Client, step: Step) -> int:
                    self.steps.append(step)
                    return sum(step.path)


            @dataclass
            class Step:
                name: str
                path: list[int] = field(default_factory=list)
        """,
    )
    play = Playing(Pieces(folder))
    ada = play.join("field")
    assert ada.ask("step", {"name": "a", "path": [1, 2]}).value == 3
    assert ada.ask("step", {"name": 1}).error is not None
    assert type(play.room().steps[0]).__name__ == "Step"


def test_limits_in_annotations_hold(folder: Path) -> None:
    write(
        folder,
        chat_py="""
            from typing import Annotated

            from msgspec import Meta

            from session_server import Client, Room, on

            class Chat(Room):
                @on("say")
                def say(self, client: Client, text: Annotated[str, Meta(max_length=5)]) -> str:
                    return text
        """,
    )
    ada = Playing(Pieces(folder)).join("chat")
    assert ada.ask("say", "hello").value == "hello"
    assert ada.ask("say", "hello!").error is not None


def test_two_folders_with_the_same_slug_do_not_meet(tmp_path: Path) -> None:
    classes: list[Any] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, field_py=f"NAME = {name!r}\n" + textwrap.dedent(room(name.title())))
        classes.append(Pieces(tmp_path / name).room_class("field"))
    assert [c.__name__ for c in classes] == ["One", "Two"]


# --- what the author is told ------------------------------------------------------------------------------------------


FAULTS = {
    "syntax": ("x = 1\ndef f(:\n", 2, "SyntaxError"),
    "indentation": ("x = 1\n  y = 2\n", 2, "IndentationError|SyntaxError"),
    "exception": ("x = 1\n\nraise RuntimeError('the shop is closed')\n", 3, "RuntimeError: the shop is closed"),
    "exit": ("x = 1\nraise SystemExit(3)\n", 2, "SystemExit"),
    "import": ("import nowhere_at_all\n", 1, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "name": ("from session_server import Room\n\nclass Field(Romm): ...\n", 3, "NameError: name 'Romm' is not defined"),
    "within a call": ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError"),
    "within a library": ("import json\n\njson.loads('{')\n", 3, "JSONDecodeError"),
    "bad type in @on": ("from session_server import on\n\n@on('')\ndef a(): ...\n", 3, "ValueError"),
    "not utf-8": (b"x = '\xff'\n", 1, "SyntaxError"),
}  # fmt: skip


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(("code", "line", "text"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_file_line_and_reason(
    folder: Path, code: str | bytes, line: int, text: str, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--pieces pieces`, the default, is a relative path."""
    (folder / "field.py").write_bytes(code if isinstance(code, bytes) else code.encode())
    monkeypatch.chdir(folder)
    seen = error_of(Path("../" + folder.name) if relative else folder, "field")
    place, _, reason = seen.partition("field.py:")
    assert place.endswith("/") and reason.startswith(f"{line}: "), seen
    assert any(option in reason for option in text.split("|")), seen


SHAPES = "expected (self, client) or (self, client, content)"
HANDLERS = {
    "two for a type": (
        "@on('a')\ndef a(self, client): ...\n@on('a')\ndef b(self, client): ...",
        "two handlers for 'a'",
    ),
    "too many arguments": ("@on('a')\ndef a(self, client, x, y): ...", SHAPES),
    "no client": ("@on('a')\ndef a(self): ...", SHAPES),
    "unknown annotation": ("@on('a')\ndef a(self, client, x: 'Nowhere'): ...", "annotation of 'x' cannot be used"),
    "no such attribute": ("@on('a')\ndef a(self, client, x: 'Room.Nowhere'): ...", "annotation of 'x' cannot be used"),
}


@pytest.mark.parametrize(("code", "text"), HANDLERS.values(), ids=HANDLERS)
def test_a_bad_handler_is_found_when_the_piece_is_loaded(folder: Path, code: str, text: str) -> None:
    head = "from session_server import Room, on\n\nclass Field(Room):\n"
    (folder / "field.py").write_text(head + textwrap.indent(code, "    ") + "\n")
    line = error_of(folder, "field")
    assert text in line and "field.py:" in line


def test_one_broken_piece_leaves_the_others_whole(folder: Path) -> None:
    write(folder, broken_py="1 / 0", field_py=room())
    pieces = Pieces(folder)
    assert len(pieces.errors()) == 1
    assert pieces.room_class("field") is not None
    play = Playing(pieces)
    assert play.join("broken").closed is not None
    assert play.join("field").ask("ping", 1).value == 2


@pytest.mark.parametrize("slug", sorted(ROUTES))
def test_names_of_routes_are_refused(folder: Path, slug: str) -> None:
    (folder / f"{slug}.html").write_text("<p>")
    assert "is a page of the server itself" in error_of(folder, slug)
    assert str(folder / f"{slug}.html") in error_of(folder, slug)


@pytest.mark.parametrize("slug", ["a~b", "a:b", "a%b", "a\x07b", "x" * 129, "\u202eabc"])
def test_a_file_whose_name_is_no_slug_is_refused(folder: Path, slug: str) -> None:
    (folder / f"{slug}.py").write_text(textwrap.dedent(room()))
    assert "the file's name is no slug" in error_of(folder, slug)


def test_a_name_in_another_form_of_unicode_is_refused_with_a_line(folder: Path) -> None:
    (folder / "cafe\u0301.py").write_text(textwrap.dedent(room()))
    assert "is no slug" in error_of(folder, "cafe\u0301")


@pytest.mark.parametrize("slug", ["café", "日本", "a.b", "my-piece", "100", "a b"])
def test_names_may_be_in_any_script(folder: Path, slug: str) -> None:
    (folder / f"{slug}.py").write_text(textwrap.dedent(room()))
    assert Pieces(folder).room_class(slug) is not None


# --- edited while people play -----------------------------------------------------------------------------------------


def edit(path: Path, text: str) -> None:
    """Writes it, a millisecond later than it was: two edits of one clock tick could not be told apart."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(textwrap.dedent(text))
    os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


ANSWER = "from session_server import Room\nclass {name}(Room):\n    answer = {answer}\n"


def answer_of(pieces: Pieces, slug: str) -> Any:
    room_class = pieces.room_class(slug)
    assert room_class is not None
    return vars(room_class)["answer"]


def test_only_what_was_edited_is_loaded_anew(folder: Path) -> None:
    write(folder, a_py=ANSWER.format(name="A", answer=1), b_py=ANSWER.format(name="B", answer=1))
    pieces = Pieces(folder)
    untouched = pieces.room_class("b")
    assert pieces.refresh().code == []
    edit(folder / "a.py", ANSWER.format(name="A", answer=2))
    assert [piece.slug for piece in pieces.refresh().code] == ["a"]
    assert answer_of(pieces, "a") == 2 and pieces.table["a"].version == 2
    assert pieces.room_class("b") is untouched and pieces.table["b"].version == 1


def test_an_edit_that_cannot_be_used_leaves_the_class_that_could(folder: Path) -> None:
    write(folder, a_py=ANSWER.format(name="A", answer=1))
    pieces = Pieces(folder)
    edit(folder / "a.py", "class A(:\n")
    assert pieces.refresh().code[0].error == f"{folder}/a.py:1: SyntaxError: invalid syntax"
    assert answer_of(pieces, "a") == 1 and len(pieces.errors()) == 1
    assert pieces.refresh().code == [], "the same mistake is told once"
    edit(folder / "a.py", ANSWER.format(name="A", answer=3))
    pieces.refresh()
    assert answer_of(pieces, "a") == 3 and pieces.errors() == []


def test_an_edit_of_a_helper_reaches_all_pieces_that_import_it(folder: Path) -> None:
    helped = "from _helper import ANSWER\n" + ANSWER
    write(folder, a_py=helped.format(name="A", answer="ANSWER"), b_py=helped.format(name="B", answer="ANSWER + 10"))
    write(folder, c_py=ANSWER.format(name="C", answer=0), _helper_py="ANSWER = 1")
    pieces = Pieces(folder)
    assert (answer_of(pieces, "a"), answer_of(pieces, "b")) == (1, 11)
    edit(folder / "_helper.py", "ANSWER = 2")
    assert [piece.slug for piece in pieces.refresh().code] == ["a", "b"]
    assert (answer_of(pieces, "a"), answer_of(pieces, "b")) == (2, 12)


def test_an_edit_of_a_helper_is_noticed_in_a_folder_of_a_relative_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, a_py="from _helper import ANSWER\n" + ANSWER.format(name="A", answer="ANSWER"))
    write(folder, _helper_py="ANSWER = 1")
    monkeypatch.chdir(folder.parent)
    pieces = Pieces(Path(folder.name))
    edit(folder / "_helper.py", "ANSWER = 2")
    assert [piece.slug for piece in pieces.refresh().code] == ["a"]
    assert answer_of(pieces, "a") == 2


def test_a_missing_helper_is_found_once_it_is_written(folder: Path) -> None:
    write(folder, a_py="from _late import ANSWER\n" + ANSWER.format(name="A", answer="ANSWER"))
    pieces = Pieces(folder)
    assert "No module named '_late'" in pieces.errors()[0]
    edit(folder / "_late.py", "ANSWER = 4")
    pieces.refresh()
    assert answer_of(pieces, "a") == 4


def test_helpers_of_two_folders_are_not_mixed_up(folder: Path) -> None:
    for number, place in enumerate((folder / "one", folder / "two")):
        place.mkdir()
        write(place, _helper_py=f"ANSWER = {number}", a_py="from _helper import ANSWER\n" + ANSWER.format(name="A", answer="ANSWER"))  # fmt: skip # noqa: E501
    assert [answer_of(Pieces(folder / name), "a") for name in ("one", "two")] == [0, 1]


def test_types_of_a_helper_work_when_other_pieces_were_loaded_since(folder: Path) -> None:
    """They look their module up by name, when they are first used."""
    write(
        folder,
        a_py="""
            from session_server import Client, Room, on
            from _shapes import Step

            class A(Room):
                @on("step")
                def step(self, client: Client, content: dict) -> float:
                    import msgspec
                    return msgspec.convert(content, Step).to.x
        """,
        b_py=ANSWER.format(name="B", answer=1),
        _shapes_py="""
            from __future__ import annotations
            import msgspec

            class Step(msgspec.Struct):
                to: Place

            class Place(msgspec.Struct):
                x: float
        """,
    )
    play = Playing(Pieces(folder))
    assert play.join("a").ask("step", {"to": {"x": 2.5}}).value == 2.5


def test_pieces_come_and_go_and_become_relays(folder: Path) -> None:
    write(folder, a_py=ANSWER.format(name="A", answer=1))
    pieces = Pieces(folder)
    edit(folder / "b.py", ANSWER.format(name="B", answer=1))
    assert [piece.slug for piece in pieces.refresh().code] == ["b"]
    edit(folder / "a.html", "<p>")
    (folder / "a.py").unlink()
    [gone] = pieces.refresh().code
    assert gone.slug == "a" and gone.room_class is None and pieces.page("a") is not None
    (folder / "b.py").unlink()
    assert [(piece.slug, piece.code) for piece in pieces.refresh().code] == [("b", None)]
    assert pieces.room_class("b") is None and "b" not in pieces.table and pieces.refresh().code == []


def test_which_pages_an_edit_concerns(folder: Path) -> None:
    write(folder, a_html="<p>", b_html="<p>", a_css="p {}", shared_css="p {}")
    (folder / "b").mkdir()
    (folder / "b" / "part.js").write_text("1")
    pieces = Pieces(folder)
    assert pieces.refresh().pages == set()
    for name, concerned in (("a.html", "a"), ("a.css", "a"), ("b/part.js", "b"), ("shared.css", "ab")):
        edit(folder / name, "other")
        assert pieces.refresh().pages == set(concerned), name
