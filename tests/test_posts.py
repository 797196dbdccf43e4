"""What publishers post over HTTP: to a room, or to all classic pages; and who may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from serving import CLASSIC, Peer, Serving, request, serving
from session_server.posts import read_post, takes_posts
from session_server.protocol import CLASSIC as CLASSIC_DIALECT

TOKEN = "an admin's token"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
AT = 1_700_000_000_000  # milliseconds since 1970


@pytest.mark.parametrize(
    ("path", "body", "slug", "type", "content", "id"),
    [
        ("/session/field/messages", b'{"type":"x","content":{"a":1},"id":"redis"}', "field", "x", {"a": 1}, "redis"),
        ("/session/a/b~c/messages", b'{"type":"x"}', "a/b~c", "x", None, 0),
        ("/session/%C3%A9/messages", b'{"type":"x","content":null}', "é", "x", None, 0),
        ("/reload", b'{"piece":"*refresh*"}', None, "reload", {"piece": "*refresh*"}, "pieces"),
        ("/jump", b'{"piece":"field","x":1}', None, "jump", {"piece": "field"}, "pieces"),
        ("/build-stream", b'{"line":"ok"}', None, "build:log", {"line": "ok", "timestamp": AT}, None),
        ("/build-stream", b'"ok"', None, "build:log", {"line": "ok", "timestamp": AT}, None),
        ("/build-stream", b"not ok", None, "build:log", {"line": "not ok", "timestamp": AT}, None),
        ("/build-status", b'{"step":2}', None, "build:status", {"step": 2, "timestamp": AT}, None),
    ],
)
def test_what_is_posted_becomes_a_message(
    path: str, body: bytes, slug: str | None, type: str, content: Any, id: Any
) -> None:
    assert takes_posts(path)
    post = read_post(path, body, AT)
    told = {"content": None, "id": None} | json.loads(CLASSIC_DIALECT.encode(post.message) or b"")
    assert (post.slug, told) == (slug, {"type": type, "content": content, "id": id})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/session/field/messages", b""), ("/session/field/messages", b"[]"), ("/session/field/messages", b"null"),
        ("/session/field/messages", b"{}"), ("/session/field/messages", b'{"type":""}'),
        ("/session/field/messages", b'{"type":"x","id":3}'), ("/session/field/messages", b'{"type":"\xff"}'),
        ("/session/../messages", b'{"type":"x"}'), ("/session/a%00/messages", b'{"type":"x"}'), ("/reload", b"{"),
        ("/jump", b"{}"), ("/jump", b'{"piece":1}'), ("/jump", b"null"), ("/build-stream", b"{}"),
        ("/build-stream", b"x" * 20_000), ("/build-stream", b"[1]"), ("/build-status", b"1"),
        ("/reload", b"[" * 100_000),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_with_a_line(path: str, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_post(path, body, AT)


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    code = "from session_server import Room\nclass Talk(Room):\n    relay = True\n"
    with serving({"talk": code}, admin_token=TOKEN, new_rooms_per_address=0, isolate_classic=True) as served:
        yield served


def post(site: Serving, path: str, body: Any, headers: dict[str, str]) -> tuple[int, str]:
    data = json.dumps(body).encode()
    head = request(path, {"Host": site.host, "Content-Length": str(len(data))} | headers, "POST")
    answer = site.ask(head + data)[0]
    return answer.status, answer.text


def hears(peer: Peer, type: str) -> dict[str, Any]:
    while True:
        told: dict[str, Any] = peer.message()
        if told["type"] == type:
            return told


def test_a_message_for_a_room_comes_to_all_in_it(site: Serving) -> None:
    with site.join("/session/talk", CLASSIC) as ada, site.join("/session/talk:2", CLASSIC) as other:
        status, text = post(site, "/session/talk/messages", {"type": "news", "content": [1], "id": "press"}, ADMIN)
        assert status == 200 and json.loads(text) == {"msg": "news sent", "body": [1]}
        assert hears(ada, "news") == {"type": "news", "content": [1], "id": "press"}
        post(site, "/session/talk:2/messages", {"type": "other"}, ADMIN)
        assert hears(other, "other")["id"] == 0, "and nothing of the first"


@pytest.mark.parametrize(
    ("path", "type", "id"),
    [("/reload", "reload", "pieces"), ("/jump", "jump", "pieces"), ("/build-status", "build:status", None)],
)
def test_what_all_are_told_is_heard_in_every_lobby(site: Serving, path: str, type: str, id: str | None) -> None:
    with site.join("/", CLASSIC) as ada, site.join("/session/prompt~x", CLASSIC) as bob:
        assert post(site, path, {"piece": "field"}, ADMIN)[0] == 200
        for page in (ada, bob):
            told = hears(page, type)
            assert told["content"]["piece"] == "field" and told.get("id") == id and ("id" in told) == (id is not None)


def test_code_that_is_posted_is_run_by_those_who_watch_its_channel(site: Serving) -> None:
    code = {"codeChannel": "mine", "piece": "x", "source": "y"}
    with site.join("/session/prompt", CLASSIC) as ada:
        ada.send("code-channel:sub", "mine")
        site.settle(ada.sock)
        assert post(site, "/session/lobby/messages", {"type": "code", "content": code}, ADMIN)[0] == 200
        told = hears(ada, "code")
        assert json.loads(told["content"]) == code and told["id"] == "development"


@pytest.mark.parametrize("path", ["/session/talk/messages", "/reload", "/jump", "/build-stream", "/build-status"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, ADMIN | {"Origin": "https://a.example"}])
def test_only_who_has_the_admin_token_may_post(site: Serving, path: str, headers: dict[str, str]) -> None:
    before = site.call(lambda: len(site.server.rooms.rooms))
    status, text = post(site, path, {"piece": "field", "type": "x", "line": "x"}, headers)
    assert status == 403 and "token" in text and site.call(lambda: len(site.server.rooms.rooms)) == before


def test_in_development_this_machine_may_but_no_page_of_another_site() -> None:
    with serving(development=True) as site:
        local = {"Host": f"localhost:{site.port}"}
        assert post(site, "/reload", {}, local)[0] == 200
        assert post(site, "/reload", {}, local | {"Origin": f"http://localhost:{site.port}"})[0] == 200
        assert post(site, "/reload", {}, local | {"Origin": "https://a.example"})[0] == 403
        assert post(site, "/reload", {}, local | {"Origin": "null"})[0] == 403
        assert post(site, "/reload", {}, {"Host": "rebound.example.org"})[0] == 403
        assert post(site, "/reload", {}, local | {"X-Forwarded-For": "192.0.2.1"})[0] == 403
        assert post(site, "/build-stream", "a line", local)[0] == 200


def test_what_is_wrong_with_a_post_is_said(site: Serving) -> None:
    status, text = post(site, "/session/talk/messages", {"type": ""}, ADMIN)
    assert (status, text) == (400, "type of a message is empty, expected 1 to 255 bytes\n")
    for path in ("/session/talk", "/session/talk/message", "/", "/reload/", "/update", "/profile-event"):
        assert post(site, path, {}, ADMIN)[0] == 405, path
