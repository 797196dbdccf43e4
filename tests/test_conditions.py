"""What a bad network does: figures of many throws of seeded dice."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from session_server.conditions import MAX_QUEUE, MAX_RETRANSMITS, RETRANSMIT_AFTER, Conditions, Path


def path(seed: int = 7, **conditions: float) -> Path:
    return Path(Conditions(**conditions), Random(seed))


def test_a_good_network_carries_at_once() -> None:
    assert path().datagram(100, 5.0) == [5.0] and path().reliable(100, 5.0) == 5.0


def test_jitter_lies_around_the_delay_and_never_before_the_sending() -> None:
    one = path(delay=0.1, jitter=0.05)
    times = [time for n in range(1000) for time in one.datagram(100, float(n))]
    delays = [time - n for n, time in enumerate(times)]
    assert (
        0.05 <= min(delays) < 0.055 and 0.145 < max(delays) <= 0.150001 and mean(delays) == pytest.approx(0.1, abs=3e-3)
    )
    wild = path(delay=0.01, jitter=0.05)
    assert all(wild.reliable(100, float(n)) >= n for n in range(1000))


def test_a_share_of_datagrams_is_lost_and_another_comes_twice() -> None:
    one = path(loss=0.2, duplicates=0.1)
    copies = [len(one.datagram(100, 0.0)) for _ in range(5000)]
    assert copies.count(0) / 5000 == pytest.approx(0.2, abs=0.02)
    assert copies.count(2) / 5000 == pytest.approx(0.08, abs=0.02)


def test_what_is_reliable_comes_later_for_each_loss_and_always_comes() -> None:
    one = path(loss=0.5)
    times = {round(one.reliable(100, 0.0), 9) for _ in range(2000)}
    waits = [round(RETRANSMIT_AFTER * (2**n - 1), 9) for n in range(MAX_RETRANSMITS + 1)]
    assert times == set(waits)
    assert path(loss=1.0).reliable(100, 0.0) == pytest.approx(waits[-1])


def test_a_narrow_link_takes_its_time_for_each_byte_of_both_kinds_and_sheds_what_would_wait_too_long() -> None:
    one = path(bandwidth=1000)
    assert one.datagram(100, 0.0) == [pytest.approx(0.1)]
    assert one.reliable(200, 0.0) == pytest.approx(0.3)
    assert one.datagram(100, 5.0) == [pytest.approx(5.1)], "it is free again"
    arrived = [time for _ in range(30) for time in one.datagram(100, 6.0)]
    assert len(arrived) == 11 and arrived[-1] <= 6.1 + MAX_QUEUE
    assert one.reliable(100, 6.0) == pytest.approx(7.2)


def test_a_seed_repeats_a_run() -> None:
    def run(seed: int) -> list[list[float]]:
        one = path(seed, delay=0.1, jitter=0.1, loss=0.3, duplicates=0.3)
        return [one.datagram(100, float(n)) for n in range(50)]

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("wrong", [{"loss": 1.1}, {"delay": -1}, {"jitter": float("nan")}, {"bandwidth": -5}])
def test_impossible_conditions_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is .*, expected 0 to "):
        Conditions(**wrong)
