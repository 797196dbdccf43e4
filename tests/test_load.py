"""The load tester: counts what was sent, what came and what did not; asks before it hurts; knows its own limit."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from serving import Serving, serving
from session_server import load
from session_server.check import Target
from session_server.cli import main
from session_server.client import Message
from session_server.load import Kind, Latencies, Load, Outcome, Plan, rooms_of, table

DEAF = """
from session_server import Room

class Deaf(Room):
    pass
"""
BOUNCER = """
from session_server import Room

class Bouncer(Room):
    def on_message(self, client, message):
        client.kick("no dancing")
"""


def play(site: Serving, plan: Plan, slug: str | None = None, lines: list[str] | None = None) -> Outcome:
    async def run() -> Outcome:
        tell = (lambda line: None) if lines is None else lines.append
        outcome = await Load(Target(f"http://{site.host}", slug), plan).run(tell, every=0.05)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return outcome

    return asyncio.run(run())


# --- what is counted --------------------------------------------------------------------------------------------------


def test_every_message_reaches_all_others_of_its_room_and_is_counted() -> None:
    lines: list[str] = []
    with serving() as site:
        outcome = play(site, Plan(clients=5, rate=20, rooms=2, seconds=0.5, size=100, unreliable=True), lines=lines)
        site.until(lambda: not site.server.connections)
    assert outcome.joins.count == 5 and outcome.is_good
    for kind in (outcome.reliable, outcome.unreliable):
        assert kind.sent == 5 * 10
        assert kind.expected == (3 * 2 + 2 * 1) * 10  # of three in one room and two in the other
    assert outcome.reliable.latencies.count == 80
    assert 0 < outcome.unreliable.latencies.count <= 80
    assert any("deliveries/s" in line for line in lines)


def test_those_that_are_not_let_in_are_counted_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "JOIN_WITHIN", 2.0)
    with serving(connections_per_address=2) as site:
        outcome = play(site, Plan(clients=4, rooms=2, seconds=0.2))
    assert outcome.joins.count == 2 and outcome.refused.total() == 2 and not outcome.is_good
    assert len(outcome.refused) == 1, "the same reason, though of two rooms"
    assert "--connections-per-address" in table(outcome)
    assert not outcome.reliable.lost, "nobody waits for those who are not there"


@pytest.mark.parametrize(("piece", "code", "error"), [("deaf", DEAF, "unknown"), ("bouncer", BOUNCER, "no dancing")])
def test_what_a_room_refuses_is_told_and_counts_as_lost(
    monkeypatch: pytest.MonkeyPatch, piece: str, code: str, error: str
) -> None:
    monkeypatch.setattr(load, "STRAGGLERS", 0.5)
    with serving({piece: code}) as site:
        outcome = play(site, Plan(clients=2, rate=10, seconds=0.3), piece)
    assert error in " ".join(outcome.errors) and not outcome.is_good
    assert outcome.reliable.latencies.count == 0 and outcome.reliable.lost == outcome.reliable.expected > 0


def test_messages_over_the_servers_rate_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STRAGGLERS", 0.5)
    with serving(message_rate=1.0, message_burst=3.0) as site:
        outcome = play(site, Plan(clients=2, rate=20, seconds=0.5))
    assert any(reason.startswith("rate: ") for reason in outcome.errors)
    assert outcome.reliable.lost > 0


def test_a_latency_counts_from_when_it_was_to_be_sent_and_others_messages_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load.time, "monotonic", lambda: 12.0)
    one = Load(Target("http://localhost"), Plan())
    for content in (["another", 11.0, ""], [one._key, "11", ""], [one._key, 11.0], None, {}, [one._key, 11, ""]):
        one._hear(content, Message("load", content))
    assert one.outcome.reliable.latencies.count == 0
    one._hear([one._key, 11.5, ""], Message("load", reliable=True))
    one._hear([one._key, 10.0, ""], Message("load", reliable=False))
    assert one.outcome.reliable.latencies.worst == 0.5
    assert one.outcome.unreliable.latencies.worst == 2.0


@given(st.lists(st.floats(1e-5, 100.0), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_exact_to_two_percent(values: list[float], share: float) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert exact * 0.999 <= latencies.percentile(share) <= exact * 1.03
    assert latencies.worst == max(values) and latencies.count == len(values)


def test_of_nothing_there_is_no_percentile() -> None:
    assert Latencies().percentile(0.5) == 0.0
    assert "–" in table(Outcome(Plan()))


# --- what may be asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "deliveries"),
    [
        ({"clients": 10, "rate": 10.0}, 900.0),
        ({"clients": 10, "rate": 10.0, "unreliable": True}, 1800.0),
        ({"clients": 5, "rate": 1.0, "rooms": 2}, 8.0),
    ],
)
def test_deliveries_are_known_before(plan: dict[str, Any], deliveries: float) -> None:
    assert Plan(**plan).deliveries == deliveries


@pytest.mark.parametrize(
    "plan",
    [
        {"clients": 0}, {"clients": 1}, {"rate": 0.0}, {"rate": float("nan")}, {"rate": float("inf")},
        {"seconds": -1.0}, {"size": 3}, {"rooms": 0}, {"clients": 3, "rooms": 2},
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_carried_out(plan: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Plan(**plan)


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        ({}, None),
        ({"clients": 32}, "deliveries"),
        ({"clients": 33, "rooms": 16}, "clients"),
        ({"seconds": 61.0}, "seconds"),
    ],
)
def test_what_is_no_test_any_more_at_somebody_elses(plan: dict[str, Any], what: str | None) -> None:
    excess = Plan(**plan).excess()
    assert excess is None if what is None else what in (excess or "")


def test_several_rooms_are_instances_of_one_piece() -> None:
    assert rooms_of("field", Plan(rooms=1)) == ["field"]
    assert rooms_of("field", Plan(clients=4, rooms=2)) == ["field~1", "field~2"]


# --- honesty ----------------------------------------------------------------------------------------------------------


def test_the_tester_says_when_it_was_itself_the_limit() -> None:
    outcome = Outcome(Plan(), busy=0.2)
    outcome.loop.add(0.001)
    assert outcome.own_limit is None and "limit" not in table(outcome)
    outcome.busy = 0.97
    assert "97 % of a processor" in table(outcome)
    outcome.busy = 0.2
    outcome.loop.add(0.3)
    assert "its own loop was late by 300 ms" in table(outcome)


def test_a_table_names_what_was_lost_and_the_commonest_errors() -> None:
    outcome = Outcome(Plan(unreliable=True), seconds=2.0, unreliable=Kind(sent=10, expected=100))
    for _ in range(90):
        outcome.unreliable.latencies.add(0.01)
    outcome.errors.update({f"reason {number}": 10 - number for number in range(8)})
    lines = table(outcome).splitlines()
    assert re.fullmatch(r"unreliable +10 +90 +45 +10 ms +10 ms +10 ms +10 ms +10 \(10\.00 %\)", lines[3])
    assert "      10 × reason 0" in lines and "      12 × something else" in lines
    assert not any("reason 6" in line for line in lines)


def test_a_server_that_makes_up_reasons_fills_no_memory() -> None:
    reasons: Counter[str] = Counter()
    for number in range(10_000):
        load.tally(reasons, f"reason {number}")
    assert len(reasons) <= load.DISTINCT + 1 and reasons.total() == 10_000


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["load", *arguments])
    return result.exit_code, result.output


def test_the_command_prints_a_table_and_says_0_when_all_arrived() -> None:
    with serving() as site:
        code, output = run(f"http://{site.host}", "--clients", "2", "--seconds", "0.2", "--rate", "20")
    assert code == 0
    assert re.search(r"^reliable +8 +8 ", output, re.MULTILINE)


def test_the_command_says_1_when_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "JOIN_WITHIN", 0.2)
    code, output = run("http://127.0.0.1:9", "--clients", "2")
    assert code == 1
    assert "2 × cannot be reached" in output


def test_the_command_asks_before_it_loads_another_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str) -> list[str]:
        return ["9.9.9.9"]

    monkeypatch.setattr(load, "resolve", resolve)
    with serving() as site:
        plan = (f"http://{site.host}", "--clients", "34", "--rooms", "17", "--seconds", "0.1")
        code, output = run(*plan)
        assert code == 2
        assert "34 clients, expected at most 32" in output and "--yes" in output
        assert not site.connections
        for agreed in ((*plan, "--yes"), (f"http://{site.host}", "--clients", "2", "--seconds", "0.1")):
            code, output = run(*agreed)
            assert code != 2 and "--yes" not in output, output  # 1: on a busy machine something may come too late


@pytest.mark.parametrize("arguments", [("example.org",), ("http://127.0.0.1:9", "--clients", "1")])
def test_the_command_says_2_when_it_cannot_be_done_so(arguments: tuple[str, ...]) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert output.startswith("session-server: ") and output.count("\n") == 1
