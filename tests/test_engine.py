"""The engine of one node: it owns what it claims, and what is published is delivered at once."""

from __future__ import annotations

import pytest

from session_server.engine import Claim
from session_server.engine.memory import MemoryEngine


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine("n1", 0, report=[].append)


def test_this_node_owns_every_room(engine: MemoryEngine) -> None:
    claim = engine.claim("field")
    assert isinstance(claim, Claim) and (claim.node, claim.url) == ("n1", None)
    assert claim.epoch >= 1
    assert engine.nodes() == ["n1"]


def test_a_second_claim_of_what_is_owned_is_the_same_claim(engine: MemoryEngine) -> None:
    assert engine.claim("field") == engine.claim("field")


def test_the_epoch_rises_when_a_room_is_opened_again(engine: MemoryEngine) -> None:
    """Its ids and counts begin anew: a client that comes back must not take a stranger's seat for its own."""
    first = engine.claim("field").epoch
    engine.release("field", first)
    assert engine.claim("field").epoch > first


def test_a_release_of_an_older_epoch_is_ignored(engine: MemoryEngine) -> None:
    epoch = engine.claim("field").epoch
    engine.release("field", epoch - 1)
    assert engine.claim("field").epoch == epoch


def test_rooms_that_are_gone_are_forgotten(engine: MemoryEngine) -> None:
    for n in range(1000):
        engine.release(f"room {n}", engine.claim(f"room {n}").epoch)
    assert len(engine._epochs) == 0
    engine.release("never claimed", 1)


def test_what_is_published_reaches_all_who_subscribed_to_the_subject(engine: MemoryEngine) -> None:
    heard: list[tuple[str, bytes]] = []
    engine.subscribe("a", lambda data: heard.append(("one", data)))
    end = engine.subscribe("a", lambda data: heard.append(("two", data)))
    engine.subscribe("b", lambda data: heard.append(("other", data)))
    engine.publish("a", b"1")
    end()
    end()
    engine.publish("a", b"2", fresh_for=1.0)
    engine.publish("nobody", b"3")
    assert heard == [("one", b"1"), ("two", b"1"), ("one", b"2")]


def test_a_subscription_may_end_while_it_is_served(engine: MemoryEngine) -> None:
    heard: list[str] = []

    def once(data: bytes) -> None:
        heard.append("once")
        end()

    end = engine.subscribe("a", once)
    engine.subscribe("a", lambda data: heard.append("always"))
    engine.publish("a", b"")
    engine.publish("a", b"")
    assert heard == ["once", "always", "always"]


def test_a_subscriber_that_fails_stops_neither_the_others_nor_the_publisher(engine: MemoryEngine) -> None:
    """An engine never raises in a room's path."""
    heard: list[bytes] = []

    def broken(data: bytes) -> None:
        raise RuntimeError("broken")

    engine.subscribe("a", broken)
    engine.subscribe("a", heard.append)
    engine.publish("a", b"1")
    assert heard == [b"1"]


def test_nobody_answers_on_a_single_node(engine: MemoryEngine) -> None:
    request = engine.request("a", b"", 1.0)
    with pytest.raises(TimeoutError, match="only node"):
        request.send(None)  # type: ignore[attr-defined]


def test_it_is_always_connected(engine: MemoryEngine) -> None:
    states: list[bool] = []
    engine.on_state(states.append)
    assert states == [True]
