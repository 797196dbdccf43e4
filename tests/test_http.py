"""Discovery, figures and pages over HTTP, by design: what it says, and to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import V1, Serving, serving

TOKEN = "an admin's token"


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


NO_PIECES = (
    "session",
    "session.js",
    "session-dev.js",
    "session.d.ts",
    "health",
    "status",
    "metrics",
    "check",
    "favicon.ico",
)


def test_names_of_routes_are_no_pieces() -> None:
    code = "from session_server import Room\nclass Piece(Room): ..."
    pieces = {f"{name}.py": code for name in NO_PIECES} | {f"{name}.html": "mine" for name in NO_PIECES}
    with serving(pieces | {"a~b.py": code, "a:b.html": "mine", "%41.html": "mine", "..html": "mine"}) as site:
        errors = site.server.pieces.errors()
        for name in (*NO_PIECES, "a~b", "a:b"):
            assert any(f"/{name}.html: " in error or f"/{name}.py: " in error for error in errors), f"{name}: {errors}"
        for name in NO_PIECES:
            assert site.get(f"/{name}").text != "mine"


# --- what must not get out --------------------------------------------------------------------------------------------


def test_no_file_outside_the_folder_or_hidden_in_it_is_served(tmp_path: Path) -> None:
    folder = tmp_path / ".pieces"  # its own name hides nothing
    outside = tmp_path / "outside.txt"
    outside.write_text("secret", encoding="utf-8")
    hidden = (".git/config.json", ".git/a/b.json", "sub/.private/a/b.txt", ".env.json", "sub/.env.json")
    served = ("field.css", "sub/a.json", "sub/deep/er/b.json")
    for name in (*hidden, *served, "field.html", "field.py", "sub/page.html", "__pycache__/field.cpython-311.pyc"):
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, name).write_text("" if name.endswith(".py") else "{}", encoding="utf-8")
    Path(folder, "field.py").write_text("from session_server import Room\nclass Field(Room): ...", encoding="utf-8")
    Path(folder, "link.txt").symlink_to(outside)
    Path(folder, "linked").symlink_to(tmp_path, target_is_directory=True)
    with serving(folder) as site:
        for name in served:
            assert site.get(f"/{name}").status == 200, name
        for name in (*hidden, "field.py", "__pycache__/field.cpython-311.pyc", "linked/outside.txt", "link.txt"):
            assert site.get(f"/{name}").status in {400, 404}, name
        for path in (
            "/../outside.txt", "/%2e%2e/outside.txt", "/sub/../../outside.txt", "/sub/%2e%2e/%2e%2e/outside.txt",
            "/..%2foutside.txt", "/sub%2f..%2f..%2foutside.txt", "//outside.txt", "/%2foutside.txt", "/.%2e/o.txt",
            "/sub/..%5c..%5coutside.txt", f"/{outside}", f"/%2f{outside}", "/session.js/../../outside.txt",
            "/field~../../outside.txt", "/field:/../outside.txt", "/session.js%00.css", "/field%00.css",
        ):  # fmt: skip
            answer = site.get(path)
            assert answer.status in {400, 404} or "secret" not in answer.text, path


HOSTILE = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%22"


def test_what_strangers_invent_is_in_no_public_answer_and_in_no_label(site: Serving) -> None:
    with site.join(f"/session/{HOSTILE}", headers={"X-Forwarded-For": "203.0.113.77"}) as peer:
        peer.send("<img src=x onerror=alert(1)>", "invented content", foo="invented key")
        site.get(f"/session/{HOSTILE}?invented=query", {"User-Agent": "invented agent"})
        site.get("/invented-path")
        for path in ("/status", "/metrics", "/"):
            text = site.get(path).text
            for invented in ("script>alert", "onerror", "invented", "203.0.113.77"):
                assert invented not in text, (path, invented)
        admin = {"Authorization": f"Bearer {TOKEN}"}
        status, figures = site.get("/status", admin), site.get("/metrics", admin)
        assert "203.0.113.77" not in status.text + figures.text
        assert '<script>alert(1)</script>"' in [room["slug"] for room in status.json["rooms"]]
        assert status.headers["content-type"].startswith("application/json")
    for line in figures.text.splitlines():
        assert line.startswith("#") or METRIC.fullmatch(line), line
    labels = set(re.findall(r'reason="([^"]*)"', figures.text))
    assert all(re.fullmatch(r"[a-z_0-9]+", label) for label in labels), labels


METRIC = re.compile(r'[a-z_]+(\{[a-z_]+="[a-z_0-9]+"\})? [0-9.e+-]+')


def test_a_ticket_names_its_room_and_is_new_each_time(site: Serving) -> None:
    tickets = {site.get("/session/field~1").json["ticket"] for _ in range(5)}
    assert len(tickets) == 5
    for ticket in tickets:
        assert re.fullmatch(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}", ticket)
        now = site.clock()
        assert (
            site.call(lambda ticket=ticket, now=now: site.server._site._tickets.redeem(ticket, "x", now)) == "field~1"
        )
    assert not any(ticket in repr(site.log.entries) for ticket in tickets), "a ticket is in the log"


@pytest.mark.parametrize(
    ("host", "headers", "trusted"),
    [
        ("localhost", {}, True),
        ("127.0.0.1:1", {}, True),
        ("[::1]", {}, True),
        ("local.aesthetic.computer", {}, True),
        ("localhost.evil.example", {}, False),
        ("127.0.0.1.evil.example", {}, False),
        ("evil.example", {}, False),
        ("evil.example:80:localhost", {}, False),
        ("", {}, False),
        ("localhost", {"X-Forwarded-For": "203.0.113.1"}, False),
        ("localhost", {"X-Forwarded-For": "203.0.113.1, 127.0.0.1"}, False),
        ("localhost", {"X-Forwarded-For": "127.0.0.1"}, True),
        ("localhost", {"Authorization": "Bearer wrong"}, True),
    ],
)
def test_who_sees_the_details_of_development(
    rebindable: Serving, host: str, headers: dict[str, str], trusted: bool
) -> None:
    """A page elsewhere can point its own name at 127.0.0.1, but then it says that name."""
    own, other = (rebindable.get("/", {"Host": name}).text for name in ("localhost", "elsewhere.example"))
    assert own != other
    assert rebindable.get("/", {"Host": host} | headers).text == (own if trusted else other)
    assert ("rooms" in rebindable.get("/status", {"Host": host} | headers).json) == trusted


@pytest.fixture(scope="module")
def rebindable() -> Iterator[Serving]:
    with serving({"field.html": "field"}, development=True) as served:
        yield served


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "bearer {}x",
        "Bearer {}",
        "bearer  {} ",
        "Basic {}",
        "{}",
        "Bearer \xff",
        "Bearer {},{}",
    ],
)
def test_only_the_admin_token_opens_the_details(site: Serving, value: str) -> None:
    told = site.get("/status", {"Authorization": value.replace("{}", TOKEN)})
    assert told.status == 200
    assert ("rooms" in told.json) == (value in {"Bearer {}", "bearer  {} "})


def test_no_admin_token_means_nobody_is_admin() -> None:
    with serving() as site:
        for value in ("Bearer ", "Bearer None", "Bearer"):
            assert "rooms" not in site.get("/status", {"Authorization": value}).json


def test_the_version_of_a_piece_rises_when_it_is_edited(tmp_path: Path) -> None:
    code = tmp_path / "field.py"
    code.write_text("from session_server import Room\nclass Field(Room): ...", encoding="utf-8")
    with serving(tmp_path, admin_token=TOKEN) as site:
        versions = []
        for answer in (1, 2):
            told = site.get("/status", {"Authorization": f"Bearer {TOKEN}"}).json
            versions += [piece["version"] for piece in told["pieces"] if piece["slug"] == "field"]
            code.write_text(f"from session_server import Room\nclass Field(Room):\n    x = {answer}", encoding="utf-8")
            site.call(site.server.reload)
        assert versions == [1, 2]


# --- every answer -----------------------------------------------------------------------------------------------------


def test_pages_of_other_sites_may_read_what_the_design_says(site: Serving) -> None:
    for path in ("/session/field", "/session/%00", "/health", "/session.js", "/session.d.ts", "/field", "/field.css"):
        assert site.get(path).headers.get("access-control-allow-origin") == "*", path
    for path in ("/session/field", "/session.js"):
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
        answer = site.get(path, asked, "OPTIONS")
        assert answer.status == 204 and answer.headers["access-control-allow-origin"] == "*"
        assert "GET" in answer.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_nothing_can_be_changed_by_http(site: Serving, method: str) -> None:
    for path in ("/", "/session/field", "/status", "/metrics", "/health", "/field", "/update"):
        answer = site.get(path, {"Authorization": f"Bearer {TOKEN}"}, method)
        assert answer.status == 405 and "GET" in answer.headers["allow"], path


def test_nothing_that_changes_is_cached_and_nothing_is_sniffed(site: Serving) -> None:
    for path in ("/session/field", "/session/%00", "/health", "/status", "/metrics", "/nothing"):
        assert site.get(path).headers["cache-control"] == "no-store", path
    for path in ("/", "/field", "/field.css", "/session.js"):
        answer = site.get(path)
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_did_not_change_is_not_sent_again(site: Serving) -> None:
    first = site.get("/session.js")
    again = site.get("/session.js", {"If-None-Match": first.headers["etag"]})
    assert again.status == 304 and again.body == b""


# --- discovery, as old and new pages ask ------------------------------------------------------------------------------


def ask(site: Serving, target: str, host: str, **headers: str) -> dict[str, Any]:
    answer = site.get(target, {"Host": host} | {name.replace("_", "-"): value for name, value in headers.items()})
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [
        ("https", "https"),
        ("HTTPS", "https"),
        ("http", "http"),
        ("javascript", "http"),
        ("https, http", "http"),
        ("", "http"),
    ],
)
def test_the_scheme_that_a_proxy_names(site: Serving, proto: str, scheme: str) -> None:
    told = ask(site, "/session/field", "a.example", X_Forwarded_Proto=proto)
    assert told["url"] == f"{scheme}://a.example" and told["session"].startswith(f"ws{scheme[4:]}://a.example/")


def test_the_scheme_that_a_stranger_names_is_not_believed() -> None:
    with serving(trusted_proxy=("10.0.0.0/8",)) as site:
        assert ask(site, "/session/field", "a.example", X_Forwarded_Proto="https")["url"] == "http://a.example"


def test_a_page_that_asks_for_production_is_sent_there() -> None:
    with serving(development=True, public_url="https://play.example.org") as site:
        assert ask(site, "/session/a", "localhost:1")["url"] == "http://localhost:1"
        told = ask(site, "/session/a?service=monolith&forceProduction=1", "localhost:1")
        assert told["url"] == told["udp"] == "https://play.example.org"
        assert told["session"] == "wss://play.example.org/session/a"
        assert ask(site, "/session/a?forceProduction=0", "localhost:1")["url"] == "http://localhost:1"
        assert ask(site, "/session/a?forceProduction=", "localhost:1")["url"] == "http://localhost:1"


def test_what_an_old_page_connects_to_is_the_lobby_by_default_and_its_own_room_when_isolated() -> None:
    for isolate in (False, True):
        with serving(isolate_classic=isolate) as site:
            url = ask(site, "/session/%C3%A9~1?service=undefined", site.host)["url"]
            path = url.removeprefix(f"http://{site.host}") or "/"
            assert (path == "/") is not isolate
            with site.join(path):
                assert site.call(lambda site=site: list(site.server.rooms.rooms)) == ["é~1" if isolate else "lobby"]


def test_where_the_session_url_leads_is_the_room_it_names(site: Serving) -> None:
    for encoded in (
        "field",
        "a%2Fb",
        "%F0%9F%8E%A8",
        "e%CC%81",
        "%40ada:x~y",
        "100%25",
        "a%3Fb",
        "%23",
        "a%20b",
        "%2525",
    ):
        told = ask(site, f"/session/{encoded}", site.host)
        with site.join(told["session"].removeprefix(f"ws://{site.host}"), V1) as peer:
            assert peer.welcome["room"] == told["room"], encoded


@pytest.mark.parametrize("query", ["", "?service=undefined"])
def test_a_full_room_is_full_for_those_who_ask_for_it(query: str) -> None:
    pair = "from session_server import Room\nclass Pair(Room):\n    max_clients = 1\n    relay = True"
    with serving({"pair": pair}) as site, site.join("/session/pair"):
        answer = site.get(f"/session/pair{query}")
        if query:
            assert answer.status == 503 and answer.headers["content-type"].startswith("text/plain")
        else:
            assert answer.json["state"] == "Full" and answer.json["retry"] > 0
        assert site.get(f"/session/pair~2{query}").json["state"] == "Ready"


def test_a_request_without_a_service_or_with_any_gets_the_same_answer(site: Serving) -> None:
    known = None
    for query in ("", "?", "?service=", "?service=undefined", "?service=monolith&x=%ff", "?service=a&service=b"):
        told = ask(site, f"/session/field{query}", "a.example")
        del told["ticket"]
        known = known or told
        assert told == known
