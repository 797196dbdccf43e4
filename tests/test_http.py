"""Discovery, figures and pages over HTTP, by design: what it says, and to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import Serving, serving
from session_server.config import Config
from session_server.http import base_url

VECTORS = json.loads((Path(__file__).parent / "vectors" / "discovery.json").read_text(encoding="utf-8"))
TOKEN = "an admin's token"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["what"])
def test_the_host_of_a_session(vector: dict[str, Any]) -> None:
    config = Config(**vector.get("config", {}))
    if vector.get("error"):
        with pytest.raises(ValueError, match="Host"):
            base_url(config, vector["scheme"], vector["host"])
    else:
        assert base_url(config, vector["scheme"], vector["host"], vector.get("force", False)) == vector["url"]


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    pieces = {"field.html": "<!doctype html>field", "field.css": "body {}", "_secret.html": "no", ".hidden.js": "no"}
    with serving(pieces, admin_token=TOKEN, new_rooms_per_address=0) as served:
        yield served


def test_discovery_to_the_letter(site: Serving) -> None:
    answer = site.get("/session/field~blue?service=undefined")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"].startswith("application/json")
    told = answer.json
    assert told.pop("ticket")
    host = f"127.0.0.1:{site.port}"
    assert told == {
        "url": f"http://{host}", "udp": f"http://{host}", "state": "Ready", "session": f"ws://{host}/session/field~blue",
        "room": "field~blue", "node": "n1",
    }  # fmt: skip
    assert site.call(lambda: list(site.server.rooms.rooms)) == []  # it opens none


@pytest.mark.parametrize(
    ("encoded", "slug"),
    [("prompt~hello", "prompt~hello"), ("a/b", "a/b"), ("%F0%9F%8E%A8", "🎨"), ("e%CC%81", "é"), ("@a:b$c", "@a:b$c")],
)
def test_slugs_are_decoded_once_and_normalised(site: Serving, encoded: str, slug: str) -> None:
    assert site.get(f"/session/{encoded}").json["room"] == slug


def test_a_trusted_proxy_says_how_it_was_asked(site: Serving) -> None:
    told = site.get("/session/field", {"X-Forwarded-Proto": "https", "Host": "play.example.org"}).json
    assert told["url"] == told["udp"] == "https://play.example.org"
    assert told["session"] == "wss://play.example.org/session/field"


def test_classic_pages_may_be_given_a_room_per_slug() -> None:
    with serving(isolate_classic=True) as site:
        told = site.get("/session/field~blue").json
    assert told["url"].endswith("/session/field~blue") and told["udp"] == told["url"]


def test_a_full_server_says_so_to_those_who_understand() -> None:
    with serving(max_clients=1) as site, site.upgrade("/session/field"):
        told = site.get("/session/field").json
        assert told["state"] == "Full" and told["retry"] > 0
        old = site.get("/session/field?service=monolith")
        assert old.status == 503 and "{" not in old.text


def test_totals_are_for_everybody_and_details_for_the_admin(site: Serving) -> None:
    with site.upgrade("/session/secret-room"):
        everybody = site.get("/status")
        admin = site.get("/status", {"Authorization": f"Bearer {TOKEN}"})
        figures = site.get("/metrics", {"Authorization": f"Bearer {TOKEN}"})
    assert everybody.json["totals"]["rooms"] == 1 and "rooms" not in everybody.json
    assert "secret-room" not in everybody.text and "127.0.0.1" not in everybody.text
    assert [room["slug"] for room in admin.json["rooms"]] == ["secret-room"]
    assert "127.0.0.1" not in admin.text
    assert "session_server_clients 1.0" in figures.text and "secret-room" not in figures.text
    assert "rooms" not in site.get("/status", {"Authorization": "Bearer wrong"}).json


def test_details_of_development_are_for_this_machine_under_its_own_name() -> None:
    with serving(development=True) as site:
        assert "rooms" in site.get("/status", {"Host": f"localhost:{site.port}"}).json
        assert "rooms" not in site.get("/status", {"Host": "rebound.example.org"}).json
        assert "rooms" not in site.get("/status", {"Host": "localhost", "X-Forwarded-For": "192.0.2.1"}).json


def test_pages_and_files_beside_them(site: Serving) -> None:
    for path, kind in (("/field", "text/html"), ("/field~blue", "text/html"), ("/field.css", "text/css")):
        answer = site.get(path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
    assert site.get("/session.js").headers["content-type"].startswith("text/javascript")
    for path in ("/nothing", "/_secret", "/.hidden.js", "/lobby.py", "/..%2f..%2fetc%2fpasswd", "/field.html"):
        assert site.get(path).status in {400, 404}, path
    assert site.get("/health").text == "ok\n"


def test_names_of_routes_are_no_pieces() -> None:
    with serving({"status": "from session_server import Room\nclass Status(Room): ..."}) as site:
        assert any("status" in error for error in site.server.pieces.errors())
