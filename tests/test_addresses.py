"""Where UDP is announced, and when a public server is told that nobody outside can reach it there."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from geckos import CONNECTIONS, signal
from serving import V1, Log, serving
from session_server import addresses
from session_server.addresses import announced, out_of_reach, own_addresses
from session_server.config import Config

PUBLIC, PRIVATE = "8.8.8.8", "10.0.0.7"


def serve(**settings: Any) -> Config:
    return Config(**settings)


def ask(config: Config, log: Any = None, found: Any = (PUBLIC, PUBLIC, "2001:4860::1")) -> list[str]:
    async def resolve(host: str) -> list[str]:
        assert host == "play.example"
        if isinstance(found, Exception):
            raise found
        return list(found)

    return list(asyncio.run(announced(config, log or Log(), resolve)))


def test_what_is_said_counts_then_the_public_name_then_where_a_request_comes_to() -> None:
    url = "https://play.example"
    assert ask(serve(announce_ip=(PRIVATE,), public_url=url)) == [PRIVATE]
    assert ask(serve(public_url=url)) == [PUBLIC, "2001:4860::1"]
    assert ask(serve()) == []
    assert ask(serve(public_url=url, development=True)) == [], "development is reached under other names"


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long"), TimeoutError()])
def test_a_name_that_cannot_be_resolved_is_said_and_costs_no_more(error: Exception) -> None:
    log = Log()
    assert ask(serve(public_url="https://play.example"), log, error) == []
    assert [(level, "--public-url" in event) for level, event, _ in log.entries] == [("warning", True)]


@pytest.mark.parametrize(
    ("settings", "told", "expected"),
    [
        ({"public_url": "https://play.example"}, [PRIVATE], [PRIVATE]),
        ({"public_url": "https://play.example"}, ["127.0.0.1", "::1"], ["127.0.0.1", "::1"]),
        ({"public_url": "https://play.example"}, [PRIVATE, PUBLIC], []),
        ({"public_url": "https://play.example", "host": "127.0.0.1"}, [], ["127.0.0.1"]),
        ({"host": "127.0.0.1"}, [], []),
        ({"host": "::1"}, [], []),
        ({"host": "localhost"}, [], []),
        ({"host": PRIVATE}, [], [PRIVATE]),
        ({"host": PUBLIC}, [], []),
        ({"host": PRIVATE}, [PUBLIC], []),
        ({"host": PRIVATE, "development": True}, [], []),
    ],
)
def test_a_public_server_that_announces_only_private_addresses_is_warned(
    settings: dict[str, Any], told: list[str], expected: list[str]
) -> None:
    assert list(out_of_reach(serve(**settings), told)) == expected


def test_of_all_addresses_that_of_the_way_out_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "source_to", {"198.51.100.1": PRIVATE, "2001:db8::1": None}.get)
    for host in (None, "0.0.0.0"):
        assert own_addresses(host) == [PRIVATE]
        assert out_of_reach(serve(host=host), []) == [PRIVATE]


def test_who_listens_for_one_kind_of_address_is_not_found_at_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"198.51.100.1": PRIVATE, "2001:db8::1": "fd00::7"}
    monkeypatch.setattr(addresses, "source_to", both.__getitem__)
    assert own_addresses("0.0.0.0") == [PRIVATE] and own_addresses("::") == ["fd00::7"]
    assert own_addresses(None) == [PRIVATE, "fd00::7"]


def test_both_kinds_of_client_are_offered_what_is_announced() -> None:
    with serving(announce_ip=("203.0.113.7", "2001:db8::7")) as site, site.join("/session/field", V1) as page:
        for offer in (page.welcome["offer"], signal(site, CONNECTIONS).json["localDescription"]["sdp"]):
            assert re.findall(r"UDP \d+ (\S+) (\d+) typ host", offer) == [
                (host, str(site.server.channels.port)) for host in ("203.0.113.7", "2001:db8::7")
            ]


def test_a_server_says_so_when_it_starts() -> None:
    with serving(public_url="http://127.0.0.1") as site:
        assert [entry for entry in site.log.entries if "--announce-ip" in entry[1]], site.log.entries
    with serving() as site:
        assert not site.log.entries
