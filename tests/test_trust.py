"""How a sender judges a link for what may be lost, by acknowledgements alone. Times are explicit, in seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_server.trust import DEMOTE_AFTER, DOUBT_AFTER, PROBE_EVERY, TRUST_AGAIN, Route, Trust


def proven(now: float = 0.0) -> Trust:
    trust = Trust()
    trust.sent(now)
    trust.acked(1, now)
    return trust


def test_a_link_is_used_beside_the_other_until_the_first_acknowledgement() -> None:
    trust = Trust()
    assert trust.route(100.0) is Route.BOTH
    trust.sent(100.0)
    assert trust.route(100.0) is Route.BOTH
    trust.acked(1, 100.1)
    assert trust.route(100.1) is Route.UNRELIABLE


def test_silence_brings_doubt_and_then_the_reliable_link_alone() -> None:
    trust = proven()
    trust.sent(10.0)
    trust.sent(10.2)  # the first that nobody acknowledged counts
    assert trust.route(10.0 + DOUBT_AFTER - 0.01) is Route.UNRELIABLE
    assert trust.route(10.0 + DOUBT_AFTER) is Route.BOTH
    assert trust.route(10.0 + DEMOTE_AFTER - 0.01) is Route.BOTH
    assert trust.route(10.0 + DEMOTE_AFTER) is Route.RELIABLE
    again = 10.0 + DEMOTE_AFTER + TRUST_AGAIN
    assert trust.route(again - 0.01) is Route.RELIABLE
    assert trust.route(again) is Route.BOTH, "it must be proven again"


def test_who_sends_nothing_waits_for_no_acknowledgement() -> None:
    trust = proven()
    assert trust.route(1000.0) is Route.UNRELIABLE


def test_an_acknowledgement_ends_the_doubt() -> None:
    trust = proven()
    trust.sent(10.0)
    assert trust.route(11.0) is Route.BOTH
    trust.acked(2, 11.0)
    assert trust.route(11.0) is Route.UNRELIABLE


def test_on_a_slow_path_doubt_waits_for_four_round_trips() -> None:
    trust = proven()
    trust.rtt = 0.2
    trust.sent(10.0)
    assert trust.route(10.7) is Route.UNRELIABLE
    assert trust.route(10.9) is Route.BOTH


def test_a_late_acknowledgement_does_not_prove_a_link_that_was_given_up() -> None:
    """Only the reliable link had stalled, or the other has died since: after the wait it is on probation."""
    trust = proven()
    trust.sent(10.0)
    assert trust.route(12.0) is Route.RELIABLE
    trust.acked(2, 12.1)
    assert trust.route(12.1) is Route.RELIABLE
    assert trust.route(12.0 + TRUST_AGAIN) is Route.BOTH


@pytest.mark.parametrize("claim", [-1, 0, 1, 3, 10**9])
def test_an_acknowledgement_that_cannot_be_counts_for_nothing(claim: int) -> None:
    trust = proven()
    trust.sent(10.0)
    trust.acked(claim, 10.3)
    assert trust.route(10.3) is Route.BOTH
    assert trust.loss == 0.0


def test_loss_follows_what_is_missing() -> None:
    trust = Trust()
    received = 0
    for second in range(50):
        for _ in range(10):
            trust.sent(float(second))
        received += 8
        trust.acked(received, second + 0.5)
    assert trust.loss == pytest.approx(0.2, abs=0.01)


def test_what_arrives_with_the_next_acknowledgement_was_not_lost() -> None:
    trust = Trust()
    received = 0
    for second in range(51):
        for _ in range(10):
            trust.sent(float(second))
        received += 6 if second % 2 else 14 if second else 4
        trust.acked(received, second + 0.5)
    assert trust.loss < 0.1


def test_what_is_under_way_is_not_lost_where_it_is_known_what_is() -> None:
    trust = Trust()
    for second in range(50):
        for _ in range(10):
            trust.sent(float(second))
        trust.acked(8 * second + 5, second + 0.5, 2 * second)
        assert trust.loss == pytest.approx(2 * second / (10 * second + 5), abs=0.06)
    assert trust.loss == pytest.approx(0.2, abs=0.01)


def test_what_was_sent_after_an_acknowledgement_waits_since_then_and_not_since_that() -> None:
    trust = Trust()
    trust.sent(10.0)
    trust.sent(10.2)
    trust.acked(1, 10.01)  # read late, as the look at it was
    assert trust.silence(10.25) == pytest.approx(0.05) and trust.route(10.4) is Route.UNRELIABLE
    trust.sent(10.4)
    trust.acked(2, 10.21)
    trust.sent(10.41)
    trust.sent(10.42)
    trust.acked(3, 10.4)
    assert trust.silence(10.5) == pytest.approx(0.1)  # about: of several only the last two are known


def test_a_proven_link_is_not_probed_while_it_speaks() -> None:
    trust = Trust()
    trust.heard_at = 9.9
    assert trust.wants_probe(10.0)  # that they are heard says nothing yet of ours
    trust.sent(10.0)
    trust.acked(1, 10.1)
    trust.heard_at = 10.9
    assert not trust.wants_probe(10.9 + PROBE_EVERY - 0.01)
    assert trust.next_look(11.0) == 10.9 + PROBE_EVERY and trust.wants_probe(10.9 + PROBE_EVERY)
    trust.sent(12.0)
    trust.heard_at = 12.0 + DEMOTE_AFTER
    assert trust.route(12.0 + DEMOTE_AFTER) is Route.RELIABLE
    trust.heard_at = again = 12.0 + DEMOTE_AFTER + TRUST_AGAIN
    assert trust.wants_probe(again)  # it must prove itself anew


def test_an_idle_link_is_probed_once_a_second_unless_it_was_given_up() -> None:
    trust = Trust()
    assert trust.wants_probe(5.0)
    trust.sent(5.0)
    assert not trust.wants_probe(5.0 + PROBE_EVERY - 0.01)
    assert trust.wants_probe(5.0 + PROBE_EVERY)
    assert trust.route(5.0 + DEMOTE_AFTER) is Route.RELIABLE
    assert not trust.wants_probe(5.0 + DEMOTE_AFTER + TRUST_AGAIN - 0.01)
    assert trust.wants_probe(5.0 + DEMOTE_AFTER + TRUST_AGAIN)


@given(st.lists(st.tuples(st.sampled_from(["send", "ack", "route"]), st.floats(0, 3), st.integers(-1, 50))))
def test_a_silent_link_is_never_used_alone_whatever_came_before(steps: list[tuple[str, float, int]]) -> None:
    trust, now = Trust(), 0.0
    for step, pause, number in steps:
        now += pause
        if step == "send":
            trust.sent(now)
        elif step == "ack":
            trust.acked(number, now)
        else:
            trust.route(now)
        assert 0 <= trust.loss <= 1
    trust.sent(now)
    assert trust.route(now + DOUBT_AFTER) is not Route.UNRELIABLE


def test_what_was_sent_since_an_acknowledgement_waits_from_then_on() -> None:
    """One that is looked at later than it came."""
    trust = proven()
    for now in (10.0, 10.1, 10.2):
        trust.sent(now)
    trust.acked(2, 10.05)  # the link died after it
    assert trust.route(10.29) is Route.UNRELIABLE
    assert trust.route(10.05 + DOUBT_AFTER) is Route.BOTH


def test_what_was_sent_before_an_acknowledgement_and_is_not_in_it_waits_for_nothing() -> None:
    trust = proven()
    trust.sent(10.0)
    trust.sent(10.1)
    trust.acked(2, 10.2)  # one of them is lost
    assert trust.route(1000.0) is Route.UNRELIABLE


steps = st.lists(st.tuples(st.sampled_from(["sent", "acked"]), st.floats(0, 3)), max_size=12)


@given(steps, st.floats(0, 0.999), st.sampled_from([0.0, 0.1, 0.7]))
def test_nothing_changes_before_the_next_look(steps: list[tuple[str, float]], share: float, rtt: float) -> None:
    trust, now = Trust(), 100.0
    trust.rtt = rtt
    for what, seconds in steps:
        now += seconds
        trust.sent(now) if what == "sent" else trust.acked(trust._sent, now)
        if trust.wants_probe(now):
            trust.sent(now)
        route, due = trust.route(now), trust.next_look(now)
        assert due > now
        before = now + share * (due - now)
        assert trust.route(before) is route and not trust.wants_probe(before - 1e-6)
