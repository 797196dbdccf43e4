"""Token buckets against a slower one that counts, and who counts as one address."""

from __future__ import annotations

from fractions import Fraction
from ipaddress import ip_network
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from session_server.limits import CALM, OVER_FOR, Allowance, Bucket, Buckets, Meter, Tally, client_address, network

STEADY = settings(derandomize=True, deadline=None, max_examples=150)


class Slow:
    """A token bucket as textbooks have it: tokens, refilled by the time that passed. Exact, by fractions."""

    def __init__(self, rate: Fraction, burst: Fraction) -> None:
        self.rate, self.burst, self.tokens, self.then = rate, burst, burst, Fraction(0)

    def take(self, now: Fraction, amount: Fraction) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.then) * self.rate)
        self.then = now
        if amount > self.tokens:
            return False
        self.tokens -= amount
        return True


# Powers of two, so that the floats of the real one are exact too, and both must agree on every single message.
rates = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0, 128.0])
bursts = st.integers(1, 64).map(lambda n: n / 4)
gaps = st.integers(0, 256).map(lambda n: n / 64)
amounts = st.integers(0, 40).map(lambda n: n / 4)


@given(rates, bursts, st.lists(st.tuples(gaps, amounts), max_size=40))
@example(1.0, 1.0, [(0.0, 1.0), (0.0, 1.0), (1.0, 1.0)])
@STEADY
def test_a_bucket_is_a_token_bucket(rate: float, burst: float, takes: list[tuple[float, float]]) -> None:
    bucket, slow = Bucket(rate, burst), Slow(Fraction(rate), Fraction(burst))
    now = 0.0
    for gap, amount in takes:
        now += gap
        assert bucket.take(now, amount) == slow.take(Fraction(now), Fraction(amount))


@given(
    st.tuples(rates, bursts),
    st.tuples(rates, bursts),
    st.lists(st.tuples(gaps, st.integers(0, 40)), max_size=40),
)
@STEADY
def test_a_meter_is_two_buckets_and_a_refusal_costs_nothing(
    messages: tuple[float, float], octets: tuple[float, float], takes: list[tuple[float, int]]
) -> None:
    meter = Meter(Allowance.of(*messages, *octets))
    one, two = (Slow(Fraction(rate), Fraction(burst)) for rate, burst in (messages, octets))
    now = 0.0
    for gap, size in takes:
        now += gap
        before = one.take(Fraction(now), Fraction(0)), two.take(Fraction(now), Fraction(0)), one.tokens, two.tokens
        within = one.take(Fraction(now), Fraction(1)) and two.take(Fraction(now), Fraction(size))
        if not within:
            *_, one.tokens, two.tokens = before
        assert meter.take(now, size) == within


@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (3, 1), (5, 5), (90, 90), (120, 240), (32 / 60, 32)])
def test_a_full_bucket_gives_its_whole_burst_at_any_time(rate: float, burst: float) -> None:
    """Not one less because 3 × ⅓ s is not exactly 1 s, hours after the start."""
    random = Random(7)
    for _ in range(300):
        now = random.uniform(0, 1e6)
        bucket = Bucket(rate, burst)
        assert [bucket.take(now) for _ in range(int(burst) + 1)] == [True] * int(burst) + [False], now
        meter = Meter(Allowance.of(rate, burst, 0, 0))
        assert [meter.take(now, 10) for _ in range(int(burst) + 1)] == [True] * int(burst) + [False], now


def test_a_steady_sender_at_exactly_the_rate_is_never_refused() -> None:
    bucket = Bucket(30, 1)
    assert all(bucket.take(1000 + n / 30) for n in range(3000))


@pytest.mark.parametrize("burst", [0, 1, 5])
def test_a_rate_of_zero_is_no_limit(burst: float) -> None:
    bucket, meter = Bucket(0, burst), Meter(Allowance.of(0, burst, 0, burst))
    assert all(bucket.take(1.0, 1e9) and meter.take(1.0, 10**9) for _ in range(100))


def test_a_bucket_does_not_fill_beyond_its_burst() -> None:
    bucket = Bucket(8, 4)
    assert bucket.take(0.0, 4)
    assert not bucket.take(1e6, 5)
    assert bucket.take(1e6, 4)


def test_a_message_larger_than_the_burst_never_passes() -> None:
    meter = Meter(Allowance.of(0, 1, 1024, 1024))
    assert not meter.take(1000.0, 1025)
    assert meter.take(1000.0, 1024)


# --- how long somebody has been over ----------------------------------------------------------------------------------


def meter() -> Meter:
    return Meter(Allowance.of(1, 1, 0, 0))


def test_who_is_refused_for_ten_seconds_is_over_for_too_long() -> None:
    over = meter()
    late = []
    for tenth in range(150):
        now = 50 + tenth / 10
        over.refuse(now)
        late.append(over.over_too_long(now))
    assert late.index(True) == pytest.approx(OVER_FOR * 10, abs=1)
    assert all(late[late.index(True) :])


def test_a_calm_second_begins_the_count_anew() -> None:
    over = meter()
    for second in range(60):
        over.refuse(second * (CALM + 0.01))
        assert not over.over_too_long(second * (CALM + 0.01))


# --- by address -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 3), st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=40))
@STEADY
def test_a_tally_holds_at_most_so_many_and_forgets_who_holds_nothing(most: int, steps: list[tuple[bool, str]]) -> None:
    tally = Tally(most)
    held = dict.fromkeys("abc", 0)
    for take, key in steps:
        if take:
            assert tally.take(key) == (most == 0 or held[key] < most)
            held[key] += most == 0 or held[key] < most
        elif held[key]:
            tally.give_back(key)
            held[key] -= 1
        assert len(tally) == sum(n > 0 for n in held.values())


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets = Buckets(1, 2)
    assert [buckets.take(key, 5.0) for key in "aabba"] == [True, True, True, True, False]
    assert buckets.take("a", 6.0)


def test_buckets_keep_those_who_came_last() -> None:
    buckets = Buckets(1, 1, keys=100)
    assert buckets.take("attacker", 1.0)
    for n in range(1000):
        buckets.take(f"key {n}", 1.0)
        assert not buckets.take("attacker", 1.0), "who keeps coming is not forgotten"
    assert len(buckets._buckets) == 100


def test_buckets_forget_the_least_recent() -> None:
    buckets = Buckets(1, 1, keys=2)
    assert [buckets.take(key, 1.0) for key in "abca"] == [True] * 4


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, counted: str) -> None:
    assert network(address) == counted


PROXIES = (ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy of ours: a claim
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["8.8.8.8, 198.51.100.1"], "198.51.100.1"),  # spoofed by the client, appended to by the proxy
        ("127.0.0.1", ["8.8.8.8", "198.51.100.1"], "198.51.100.1"),  # in two header lines
        ("127.0.0.1", ["127.0.0.1, 198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["198.51.100.1, 10.0.0.7"], "198.51.100.1"),  # through two proxies of ours
        ("127.0.0.1", ["8.8.8.8, 198.51.100.1, 10.0.0.7, 10.1.1.1"], "198.51.100.1"),
        ("127.0.0.1", ["10.0.0.7"], "10.0.0.7"),  # somebody within our own network
        ("127.0.0.1", ["8.8.8.8, garbage"], "127.0.0.1"),  # beyond what is not understood nothing is believed
        ("127.0.0.1", ["garbage, 198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["8.8.8.8, , 10.0.0.7"], "10.0.0.7"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("127.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("127.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        ("127.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("127.0.0.1", ["2001:DB8:0:0:0:0:0:7"], "2001:db8::7"),
        ("127.0.0.1", ["  198.51.100.1\t"], "198.51.100.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("::ffff:127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::1", ["::ffff:10.0.0.9, 198.51.100.1"], "198.51.100.1"),
        ("10.255.0.1", ["198.51.100.1, 127.0.0.1"], "198.51.100.1"),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_proxy_of_ours(peer: str, forwarded: list[str], client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


@given(st.lists(st.text(max_size=30), max_size=3))
@STEADY
def test_no_header_can_change_whom_an_untrusted_peer_is(forwarded: list[str]) -> None:
    assert client_address("203.0.113.9", forwarded, PROXIES) == "203.0.113.9"


@given(st.lists(st.text("0123456789.:[],abcdefgh \t", max_size=30), max_size=3))
@STEADY
def test_a_spoofed_header_never_hides_the_hop_that_our_proxy_saw(claims: list[str]) -> None:
    assert client_address("127.0.0.1", [*claims, "198.51.100.1"], PROXIES) == "198.51.100.1"
    if claims:
        assert client_address("127.0.0.1", [*claims[:-1], f"{claims[-1]}, 198.51.100.1"], PROXIES) == "198.51.100.1"
