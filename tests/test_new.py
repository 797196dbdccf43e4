"""`ac-session new NAME`: what it writes can be played at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from session_server.cli import main
from session_server.pieces import Pieces
from session_server.testing import RoomTest


@pytest.mark.parametrize("name", ["dots", "my-first_piece"])
def test_a_new_piece_can_be_played(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(main, ["new", name, "--pieces", str(tmp_path)])
    assert done.exit_code == 0 and f"{name}.py and " in done.stdout
    pieces = Pieces(tmp_path)
    assert pieces.errors() == [] and pieces.table[name].page is not None
    with RoomTest.piece(tmp_path / f"{name}.py") as test:
        ada, bob = test.join(), test.join()
        ada.send("dot", [0.5, 2])
        assert bob.heard("dots") == [[], [[0.5, 1.0]]]
    assert f"<title>{name}</title>" in Path(tmp_path, f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["status", "Big", "a/b", "..", "", "a b", "new:one", "-x"])
def test_a_name_that_cannot_be_a_piece_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(main, ["new", "--pieces", str(tmp_path), "--", name])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    Path(tmp_path, "dots.html").write_text("mine", encoding="utf-8")
    done = CliRunner().invoke(main, ["new", "dots", "--pieces", str(tmp_path)])
    assert done.exit_code == 2 and "dots.html is there already" in done.stderr
    assert Path(tmp_path, "dots.html").read_text(encoding="utf-8") == "mine"
    assert not Path(tmp_path, "dots.py").exists()
