"""Discovery in each mode, as rows of vectors/discovery.json: the function, a server, and what runs at a CDN."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from serving import serving
from session_server.config import Config
from session_server.discovery import discover

VECTORS = json.loads((Path(__file__).parent / "vectors" / "discovery.json").read_text(encoding="utf-8"))
CDN = Path(__file__).parent.parent / "deploy" / "cdn"
TOLD = ("url", "session", "room")


def name_of(vector: dict[str, Any]) -> str:
    return f"{vector['mode']}: {vector['what']}"


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_where_a_room_is(vector: dict[str, Any]) -> None:
    config = Config(**vector.get("config", {}))
    asked = (config, vector["scheme"], vector["host"], vector["target"])
    if "error" in vector:
        with pytest.raises(ValueError, match=vector["error"]):
            discover(*asked)
    else:
        assert discover(*asked) == {"udp": vector["url"]} | {key: vector[key] for key in TOLD}


def test_each_mode_of_the_plan_has_vectors() -> None:
    modes = {"development", "local name", "codespaces", "production", "forceProduction", "service", "isolated"}
    assert {vector["mode"] for vector in VECTORS} == modes | {"slugs", "refused"}


def config_of(vector: dict[str, Any]) -> str:
    return json.dumps(vector.get("config", {}), sort_keys=True)


SERVED = sorted((vector for vector in VECTORS if "port" not in vector.get("config", {})), key=config_of)
BY_CONFIG = [(json.loads(config), list(rows)) for config, rows in groupby(SERVED, config_of)]


@pytest.mark.parametrize(("settings", "vectors"), BY_CONFIG)
def test_a_server_says_the_same(settings: dict[str, Any], vectors: list[dict[str, Any]]) -> None:
    with serving(**settings) as it:
        for vector in vectors:
            answer = it.get(vector["target"], {"Host": vector["host"], "X-Forwarded-Proto": vector["scheme"]})
            if "error" in vector:
                assert answer.status == 400, name_of(vector)
                assert answer.headers["content-type"].startswith("text/plain"), name_of(vector)
                assert vector["error"] in answer.text, name_of(vector)
            else:
                told = answer.json
                assert told["url"] == told["udp"] and told["state"] == "Ready", name_of(vector)
                assert {key: told[key] for key in TOLD} == {key: vector[key] for key in TOLD}, name_of(vector)


# --- at a CDN ---------------------------------------------------------------------------------------------------------


def node(script: str, **environment: str) -> Any:
    """What `script`, the body of an async function that knows all of session.mjs, returns."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("no node on PATH; scripts/ensure-node (part of make check) installs one")
    code = (
        f'import * as cdn from "{(CDN / "session.mjs").as_uri()}";\nconst said = await (async () => {{{script}}})();\n'
    )
    code += "process.stdout.write(JSON.stringify(said));"
    run = subprocess.run([path, "--input-type=module"], input=code, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_function_at_a_cdn_passes_the_same_vectors() -> None:
    said = node(
        f"""
        const vectors = {json.dumps(VECTORS)};
        const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
        const settings = ({{ config = {{}} }}) =>
            Object.fromEntries(Object.entries(config).map(([name, value]) => [camel(name), value]));
        return vectors.map((vector) => {{
            try {{
                return cdn.discover(settings(vector), vector.scheme, vector.host, vector.target);
            }} catch (error) {{
                return {{ error: error.message }};
            }}
        }});
        """
    )
    for vector, answer in zip(VECTORS, said, strict=True):
        if "error" in vector:
            assert vector["error"] in answer.get("error", ""), name_of(vector)
        else:
            assert answer == {"udp": vector["url"]} | {key: vector[key] for key in TOLD}, name_of(vector)


ASK = """
    const answer = cdn.default(new Request("%s"));
    const text = await answer.text();
    return [answer.status, answer.headers.get("access-control-allow-origin"), text];
"""
PLAY = "https://play.example.org"
PUBLIC = {"SESSION_SERVER_PUBLIC_URL": PLAY}
LOCAL = {"NETLIFY_DEV": "true"}
OLD = {"SESSION_SERVER_OLD_URL": "https://old.example.org", "SESSION_SERVER_OLD_PIECES": "duel arena"}


@pytest.mark.parametrize(
    ("asked", "environment", "url"),
    [
        ("https://site.example/session/field~a?service=undefined", PUBLIC, PLAY),
        ("https://site.example/session/duel~a?service=undefined", PUBLIC | OLD, "https://old.example.org"),
        ("https://site.example/session/arena:1", PUBLIC | OLD, "https://old.example.org"),
        ("https://site.example/session/a?b", PUBLIC | {"SESSION_SERVER_ISOLATE_CLASSIC": "1"}, f"{PLAY}/session/a"),
        ("https://site.example/session/duels", PUBLIC | OLD, PLAY),
        ("https://site.example/session/~duel", PUBLIC, PLAY),
        ("http://localhost:8888/session/duel", LOCAL | OLD, "https://localhost:8889"),
        ("http://localhost:8888/session/field", LOCAL, "https://localhost:8889"),
        ("http://localhost:8888/session/field?forceProduction=1", LOCAL | PUBLIC, PLAY),
        ("https://local.aesthetic.computer/session/a", LOCAL, "https://session.local.aesthetic.computer"),
        ("https://x-8888.app.github.dev/session/a", LOCAL, "https://x-8889.app.github.dev"),
    ],
)
def test_a_page_at_a_cdn_is_sent_to_the_session_server(asked: str, environment: dict[str, str], url: str) -> None:
    status, origin, text = node(ASK % asked, **environment)
    assert (status, origin) == (200, "*")
    told = json.loads(text)
    assert told["url"] == told["udp"] == url and told["state"] == "Ready"


@pytest.mark.parametrize(
    ("asked", "environment", "status"),
    [("/session/field", {}, 500), ("/session/%00", PUBLIC, 400), ("/session/%zz", PUBLIC, 400)],
)
def test_what_goes_wrong_at_a_cdn_is_a_short_text(asked: str, environment: dict[str, str], status: int) -> None:
    seen, origin, text = node(ASK % f"https://site.example{asked}", **environment)
    assert (seen, origin) == (status, "*") and len(text) < 80 and "{" not in text


@pytest.mark.parametrize("slug", ["field", "prompt~hello", "@ada/painting", "a:b$c", "%F0%9F%8E%A8"])
def test_the_rule_without_a_function_answers_each_slug_as_classic_pages_need_it(slug: str) -> None:
    rules = [line.split() for line in (CDN / "_redirects").read_text().splitlines() if line and line[0] != "#"]
    assert [(start.endswith("*"), status) for start, _, status in rules] == [(True, "200")]
    start, file, _ = rules[0]
    assert re.match(re.escape(start[:-1]), f"/session/{slug}")
    told = json.loads((CDN / file.lstrip("/")).read_text())
    assert told["state"] == "Ready" and told["url"] == told["udp"] and told["url"].startswith("https://")
    assert "\n  Access-Control-Allow-Origin: *\n" in (CDN / "_headers").read_text().partition(start)[2]
