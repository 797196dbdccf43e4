"""SCTP associations: two against each other over a bad network, and one against an enemy who writes its own packets."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from math import inf, sqrt
from random import Random
from struct import pack, unpack_from

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network import DELAY, Network, Pair, bent

from session_server.rtc import sctp_chunks as wire
from session_server.rtc import sctp_messages, sctp_receive, sctp_send
from session_server.rtc.sctp import (
    COOKIE,
    COOKIE_LIFE,
    Association,
    Closed,
    Established,
    Probed,
    Restarted,
    StreamReset,
    bundle,
)
from session_server.rtc.sctp_messages import Bundle, Message
from session_server.rtc.sctp_receive import GAPS, HOLDING, STREAMS, WINDOW, Received
from session_server.rtc.sctp_send import (
    LEAST_WINDOW,
    MAX_OUTSTANDING,
    MAX_RETRANSMITS,
    RTO_MOST,
    STALE,
)

BINARY = 53


def connected(network: Network | None = None, both: bool = False) -> Pair:
    pair = Pair(network)
    pair.a.connect(0.0)
    if both:
        pair.b.connect(0.0)
    pair.run(1.0)
    assert pair.events == {"a": [Established()], "b": [Established()]}
    pair.forget()
    return pair


def say(end: Association, payload: bytes, stream: int = 1, ordered: bool = False, retransmits: int | None = 0) -> bool:
    return end.send(stream, BINARY, payload, ordered=ordered, max_retransmits=retransmits)


def chunks(packet: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and body of each."""
    at = 12
    while at + 4 <= len(packet):
        type, flags, size = wire.CHUNK.unpack_from(packet, at)
        yield type, flags, packet[at + 4 : at + size]
        at += size + -size % 4


def types(packets: list[bytes]) -> list[int]:
    return [type for packet in packets for type, _, _ in chunks(packet)]


def check(pair: Pair) -> None:
    """What the two halves count is what they hold."""
    for end in (pair.a, pair.b):
        sender, receiver = end._sender, end._receiver
        under_way = sum(one.size for one in sender._outstanding if one.state == sctp_send.UNDER_WAY)
        assert sender._flight == under_way + sum(item.size for item in sender._streak)
        assert sender._streak_tsn + sum(item.count for item in sender._streak) == sender.next_tsn
        assert sender._reliable_size == sum(one.size for one in sender._reliable)
        assert sender._unreliable_size == sum(one.size for one in sender._unreliable)
        held = [one.message for one in receiver._fragments.values()]
        held += [message for waiting in receiver._ordered.values() for message in waiting.values()]
        assert receiver._held == sum(len(message.payload) + HOLDING for message in held)


def talk(pair: Pair) -> None:
    """Both are heard by the other."""
    for name, other in (("a", "b"), ("b", "a")):
        pair.events[other].clear()
        assert say(pair.ends[name], b"from " + name.encode(), ordered=True, retransmits=None)
        pair.run(0.5)
        assert pair.heard(other) == [b"from " + name.encode()]


class Enemy:
    """Knows the tags of an established association `b`, and writes to it what it likes."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.victim = pair, pair.b
        self.tsn = pair.b._receiver.cumulative

    def write(self, *parts: bytes) -> None:
        self.victim.receive(wire.Header(self.victim._tag).packet(b"".join(parts)), self.pair.now)

    def data(self, tsn: int, flags: int, payload: bytes = b"x", stream: int = 1, number: int = 0) -> bytes:
        """`tsn`: counted from the last that came."""
        head = wire.TSN(self.tsn + tsn & 0xFFFFFFFF) + wire.DATA_TAIL.pack(stream, number, BINARY)
        return wire.chunk(wire.DATA, head + payload, flags)

    def sack(self) -> tuple[int, int, list[tuple[int, int]]]:
        """What the victim acknowledges: the TSN, counted likewise, its window, and its gap blocks."""
        sent = [one for packet in self.victim.transmit(self.pair.now) for one in chunks(packet)]
        ((_, _, body),) = [one for one in sent if one[0] == wire.SACK]
        cumulative, window, gaps, _ = wire.SACK_HEAD.unpack_from(body)
        return wire.unwrap(cumulative, self.tsn) - self.tsn, window, [
            unpack_from("!HH", body, 12 + 4 * number) for number in range(gaps)
        ]  # fmt: skip


WHOLE = wire.FIRST | wire.LAST


# The handshake


@pytest.mark.parametrize("both", [False, True])
def test_two_connect_in_two_round_trips_whether_one_or_both_begin(both: bool) -> None:
    pair = Pair()
    pair.a.connect(0.0)
    if both:
        pair.b.connect(0.0)
    pair.run(4 * DELAY + 0.001)
    assert pair.events == {"a": [Established()], "b": [Established()]}
    talk(pair)


def test_every_lost_packet_of_the_handshake_is_made_good() -> None:
    for number in range(1, 6):
        network = Network()
        network.passes = lambda to, packet, lost=number, network=network: network.sent != lost  # type: ignore[misc]
        connected(network)


def test_who_is_not_answered_repeats_itself_ever_slower_and_gives_up() -> None:
    pair = Pair(Network(loss=1.0))
    pair.a.connect(0.0)
    pair.run(60.0)
    assert pair.events["a"] == [Closed("the peer does not answer")]
    assert types(pair.packets["a"]) == [wire.INIT] * (MAX_RETRANSMITS + 1)
    assert pair.a.next_deadline == inf


def test_an_init_costs_no_memory_and_its_cookie_is_believed_once_it_returns() -> None:
    b = Association(random=Random(1).randbytes)
    init = wire.Header(0).packet(wire.chunk(wire.INIT, wire.INIT_BODY.pack(77, 1000, 1, 1, 500)))
    for _ in range(100):
        b.receive(init, 0.0)
    (answer,) = b.transmit(0.0)  # of many questions the last is answered
    assert wire.tag_of(answer) == 77 and b.take_events() == [] and b.transmit(0.0) == []
    ((_, _, body),) = chunks(answer)
    tag = wire.INIT_BODY.unpack_from(body)[0]
    cookie = wire.parameters(body, wire.INIT_BODY.size)[wire.STATE_COOKIE]
    good = wire.Header(tag).packet(wire.chunk(wire.COOKIE_ECHO, cookie))
    forged = [
        wire.Header(tag).packet(wire.chunk(wire.COOKIE_ECHO, cookie[:at] + bytes((cookie[at] ^ 1,)) + cookie[at + 1 :]))
        for at in range(len(cookie))
    ]
    cut = wire.Header(tag).packet(wire.chunk(wire.COOKIE_ECHO, cookie[: COOKIE.size]))
    for bad in (*forged, cut, wire.Header(tag ^ 1).packet(wire.chunk(wire.COOKIE_ECHO, cookie))):
        b.receive(bad, 1.0)
    b.receive(good, COOKIE_LIFE + 0.1)  # stale
    b.receive(good, -1.0)
    assert b.take_events() == [] and b.transmit(1.0) == [] and b.ignored == len(forged) + 4
    b.receive(good, COOKIE_LIFE - 0.1)
    assert b.take_events() == [Established()]
    assert types(b.transmit(1.0)) == [wire.COOKIE_ACK]
    b.receive(good, 2.0)  # again: the answer was lost
    assert b.take_events() == [] and types(b.transmit(2.0)) == [wire.COOKIE_ACK]


def test_data_of_a_peer_shows_that_it_has_the_cookie_even_if_it_does_not_say_so() -> None:
    network = Network()
    network.passes = lambda to, packet: wire.COOKIE_ACK not in [type for type, _, _ in chunks(packet)]
    pair = Pair(network)
    pair.a.connect(0.0)
    pair.run(3 * DELAY + 0.001)
    assert pair.events == {"a": [], "b": [Established()]}
    say(pair.b, b"first")
    pair.run(DELAY)
    assert pair.events["a"] == [Established(), Received(1, BINARY, b"first")]


def test_a_packet_with_a_wrong_tag_port_or_checksum_is_not_read() -> None:
    pair = connected()
    enemy = Enemy(pair)
    good = wire.Header(pair.b._tag).packet(enemy.data(1, WHOLE))
    start = pack("!HHL", 5000, 5001, pair.b._tag)
    checksum = google_crc32c.value(start + bytes(4) + good[12:]).to_bytes(4, "little")
    bad = [
        wire.Header(pair.b._tag ^ 1).packet(good[12:]),
        wire.Header(0).packet(good[12:]),
        start + checksum + good[12:],  # for another port
        good[:-4] + bytes(4),
        good[:8] + good[11:7:-1] + good[12:],  # big endian
        good[:15],
        b"",
    ]
    for packet in bad:
        pair.b.receive(packet, pair.now)
    assert pair.b.take_events() == [] and pair.b.ignored == len(bad)
    pair.b.receive(good, pair.now)
    assert pair.b.take_events() == [Received(1, BINARY, b"x")]


def test_an_init_with_a_tag_or_beside_other_chunks_is_not_read() -> None:
    pair = connected()
    init = wire.chunk(wire.INIT, wire.INIT_BODY.pack(77, 1000, 1, 1, 500))
    for packet in (
        wire.Header(0).packet(init + wire.chunk(wire.HEARTBEAT)),
        wire.Header(0).packet(wire.chunk(wire.INIT, wire.INIT_BODY.pack(0, 1000, 1, 1, 500))),
        wire.Header(0).packet(wire.chunk(wire.INIT, b"short")),
    ):
        pair.b.receive(packet, pair.now)
    assert pair.b.transmit(pair.now) == [] and pair.b.ignored == 3


# A peer that begins anew (§5.2)


def restart(pair: Pair) -> None:
    """A peer takes the place of `a` who knows nothing of it."""
    pair.a = pair.ends["a"] = Association(random=pair.network.random.randbytes)
    pair.a.connect(pair.now)


def test_a_peer_that_begins_anew_is_answered_and_what_was_before_is_dropped() -> None:
    pair = connected()
    say(pair.a, b"x" * 2000, retransmits=None)
    pair.b.receive(pair.a.transmit(pair.now)[0], pair.now)  # the first of two fragments
    say(pair.b, b"for the one before", ordered=True, retransmits=None)
    restart(pair)
    tag = pair.b._tag
    pair.run(0.5)
    assert pair.events["a"] == [Established()]
    assert pair.events["b"] == [Restarted()] and pair.b._tag != tag
    talk(pair)
    old = pair.packets["a"][1]  # the cookie of the second beginning: it proves nothing any more
    restart(pair)
    pair.run(0.5)
    ignored = pair.b.ignored
    pair.b.receive(old, pair.now)
    assert pair.b.ignored == ignored + 1
    talk(pair)


def test_a_new_beginning_changes_nothing_until_its_cookie_returns() -> None:
    pair = connected()
    init = wire.Header(0).packet(wire.chunk(wire.INIT, wire.INIT_BODY.pack(77, 1000, 1, 1, 500)))
    for _ in range(50):
        pair.b.receive(init, pair.now)
    (answer,) = pair.b.transmit(pair.now)
    talk(pair)
    ((_, _, body),) = chunks(answer)
    cookie = wire.chunk(wire.COOKIE_ECHO, wire.parameters(body, wire.INIT_BODY.size)[wire.STATE_COOKIE])
    restart(pair)
    pair.run(0.5)
    pair.b.receive(wire.Header(wire.INIT_BODY.unpack_from(body)[0]).packet(cookie), pair.now)
    assert pair.events["b"][-1] == Restarted() and pair.b._peer_tag == pair.a._tag
    talk(pair)


# Messages


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("retransmits", [None, 0, 3])
@pytest.mark.parametrize("name", ["a", "b"])
def test_messages_of_every_size_arrive_as_they_were(name: str, ordered: bool, retransmits: int | None) -> None:
    pair = connected(both=True)
    step = wire.MAX_FRAGMENT
    sent = [Random(size).randbytes(size) for size in (1, 2, 3, 4, step - 1, step, step + 1, 2 * step, 5000, 65536)]
    for payload in sent:
        assert say(pair.ends[name], payload, ordered=ordered, retransmits=retransmits)
    pair.run(2.0)
    assert pair.heard("b" if name == "a" else "a") == sent
    assert all(len(packet) <= wire.MAX_PACKET for packet in pair.packets[name])
    assert pair.a._receiver._held == pair.b._receiver._held == pair.a.buffered == pair.b.buffered == 0


def test_a_message_that_is_empty_too_long_or_for_nobody_is_refused() -> None:
    pair = connected()
    assert not say(pair.a, b"") and not say(pair.a, bytes(65537)) and say(pair.a, bytes(65536))
    pair.a.abort("enough")
    assert not say(pair.a, b"late") and not say(Association(random=Random(1).randbytes), b"early")


def test_streams_keep_their_own_order_and_do_not_wait_for_each_other() -> None:
    network = Network()
    pair = connected(network)
    lost: list[bytes] = []

    def passes(to: str, packet: bytes) -> bool:
        if to == "b" and b"1:0" in packet and not lost:
            lost.append(packet)
            return False
        return True

    network.passes = passes
    for number in range(4):
        for stream in (1, 2):
            say(pair.a, f"{stream}:{number}".encode(), stream, ordered=True, retransmits=None)
            pair.run(0.001)
    say(pair.a, b"unordered", 1, retransmits=None)
    pair.run(2.0)
    heard = [message.decode() for message in pair.heard("b")]
    assert lost and heard[:4] == [f"2:{number}" for number in range(4)]
    assert heard[4:] == ["unordered", *(f"1:{number}" for number in range(4))]


def test_numbers_of_messages_and_tsns_may_pass_their_end() -> None:
    pair = Pair(Network(3, loss=0.1, jitter=0.03))
    pair.a._begin(5, 0xFFFFFFF0, 0, 0, 0)
    pair.a.connect(0.0)
    pair.run(3.0)
    pair.a._sender._numbers[1] = pair.b._receiver._expected[1] = 0xFFF0
    sent = [f"{number}".encode() for number in range(60)]
    for payload in sent:
        say(pair.a, payload, ordered=True, retransmits=None)
        pair.run(0.02)
    pair.run(5.0)
    assert pair.heard("b") == sent


@pytest.mark.parametrize("order", range(6))
def test_fragments_in_any_order_make_the_message(order: int) -> None:
    pair = connected()
    enemy, random = Enemy(pair), Random(order)
    parts = []
    for message in range(8):
        size = random.randrange(1, 6)
        for part in range(size):
            flags = wire.UNORDERED | (wire.FIRST if part == 0 else 0) | (wire.LAST if part == size - 1 else 0)
            parts.append((flags, f"{message}{part}".encode(), f"{message}"))
    whole = {name: b"".join(text for _, text, other in parts if other == name) for _, _, name in parts}
    chunks = [enemy.data(1 + number, flags, text) for number, (flags, text, _) in enumerate(parts)]
    random.shuffle(chunks)
    for one in chunks:
        enemy.write(one)
        enemy.write(one)
    heard = [event.payload for event in pair.b.take_events() if isinstance(event, Received)]
    assert sorted(heard) == sorted(whole.values())
    assert enemy.sack() == (len(parts), WINDOW, []) and not pair.b._receiver._fragments


def test_fragments_of_two_messages_are_not_put_together() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for flags in (wire.FIRST, wire.FIRST, wire.LAST, wire.LAST, wire.LAST, 0, wire.FIRST):
        enemy.tsn += 1
        enemy.write(enemy.data(0, wire.UNORDERED | flags, b"%d" % flags))
    assert pair.b.take_events() == [Received(1, BINARY, b"21")]


# Acknowledgements


def test_a_sack_tells_of_gaps_and_of_the_window() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for tsn in (1, 2, 4, 5, 7, 10, 9, 5):
        enemy.write(enemy.data(tsn, WHOLE | wire.UNORDERED))
    assert enemy.sack() == (2, WINDOW, [(2, 3), (5, 5), (7, 8)])
    enemy.write(enemy.data(3, WHOLE, b"later", number=1))
    assert enemy.sack() == (5, WINDOW - 5 - HOLDING, [(2, 2), (4, 5)])
    enemy.write(enemy.data(8, WHOLE | wire.UNORDERED), enemy.data(6, WHOLE, number=0))
    assert enemy.sack() == (10, WINDOW, [])
    assert len(pair.b.take_events()) == 10


def test_one_packet_is_acknowledged_a_little_later_two_at_once_and_with_data_for_nothing() -> None:
    pair = connected()
    say(pair.a, b"1")
    pair.run(DELAY + sctp_receive.SACK_DELAY - 0.002)
    assert types(pair.packets["b"]) == []
    pair.run(0.004)
    assert types(pair.packets["b"]) == [wire.SACK]
    pair.forget()
    for _ in range(2):
        say(pair.a, b"x" * 1000)
    pair.run(DELAY + 0.001)
    assert types(pair.packets["b"]) == [wire.SACK]
    pair.run(1.0)
    pair.forget()
    say(pair.a, b"2")
    pair.run(DELAY + 0.001)
    say(pair.b, b"answer")
    pair.step("b")
    assert types(pair.packets["b"]) == [wire.SACK, wire.DATA]
    enemy = Enemy(pair)
    pair.run(1.0)
    enemy.tsn = pair.b._receiver.cumulative
    enemy.write(enemy.data(1, WHOLE | wire.UNORDERED | wire.AT_ONCE))
    assert enemy.sack()[0] == 1


def test_what_comes_twice_is_acknowledged_at_once() -> None:
    pair = connected()
    enemy = Enemy(pair)
    enemy.write(enemy.data(1, WHOLE | wire.UNORDERED | wire.AT_ONCE))
    assert enemy.sack()[0] == 1
    enemy.write(enemy.data(1, WHOLE | wire.UNORDERED))
    assert enemy.sack()[0] == 1 and len(pair.b.take_events()) == 1


def test_a_packet_has_one_sack() -> None:
    pair = connected()
    for _ in range(2):
        say(pair.a, b"x" * 1000, retransmits=None)
    pair.a.transmit(pair.now)
    sender, header = pair.a._sender, wire.Header(pair.a._tag)
    first = sender._acked + 1
    pair.a.receive(header.packet(wire.sack(first, WINDOW, []) + wire.sack(first + 1, WINDOW, [])), pair.now)
    assert sender._acked == first and pair.a.ignored == 1


def test_three_later_ones_show_a_loss_and_what_must_arrive_is_sent_again_before_any_timer() -> None:
    network = Network()
    pair = connected(network)
    lost = network.sent + 1
    network.passes = lambda to, packet: network.sent != lost
    sent = [b"%d" % number * 1100 for number in range(5)]
    for payload in sent:
        say(pair.a, payload, retransmits=None)
    pair.run(4 * DELAY + 0.01)
    assert sorted(pair.heard("b")) == sent and pair.a._sender._tries == 0
    assert types(pair.packets["a"]) == [wire.DATA] * 6


def test_a_loss_in_a_steady_flow_is_seen_after_three_packets_and_a_round_trip() -> None:
    network = Network()
    pair = connected(network)
    lost = network.sent + 1
    network.passes = lambda to, packet: network.sent != lost
    for _ in range(4):
        say(pair.a, b"x" * 100)
        pair.run(0.01)
    assert len(pair.a._sender._outstanding) == 4
    pair.run(4 * DELAY)
    assert types(pair.packets["a"]) == [wire.DATA] * 4 + [wire.FORWARD_TSN]
    assert pair.a._sender._tries == 0 and not pair.a._sender._outstanding


def test_the_same_sack_again_is_no_sign_of_loss() -> None:
    network = Network(doubled=1.0)
    pair = connected(network)
    network.jitter = 0.001  # neighbours change places, and every SACK comes twice
    for _ in range(300):
        say(pair.a, b"x" * 1000, retransmits=None)
        pair.run(0.002)
    pair.run(1.0)
    assert len(pair.heard("b")) == 300
    assert types(pair.packets["a"]).count(wire.DATA) <= 310


def test_a_message_that_may_be_lost_is_lost_and_the_peer_goes_on_without_it() -> None:
    for ordered in (False, True):
        network = Network()
        pair = connected(network)
        lost = network.sent + 1
        network.passes = lambda to, packet, lost=lost, network=network: network.sent != lost  # type: ignore[misc]
        for number in range(6):
            say(pair.a, b"%d" % number * 1100, ordered=ordered)
        pair.run(0.3)
        assert pair.heard("b") == [b"%d" % number * 1100 for number in range(1, 6)]
        assert wire.FORWARD_TSN in types(pair.packets["a"])
        assert pair.b._receiver.cumulative == pair.a._sender.next_tsn - 1 and not pair.a._sender._outstanding
        talk(pair)


def test_a_last_message_that_is_lost_is_given_up_when_the_timer_says_so() -> None:
    network = Network()
    pair = connected(network)
    network.passes = lambda to, packet: wire.DATA not in [type for type, _, _ in chunks(packet)]
    say(pair.a, b"never", ordered=True)
    pair.run(3.0)
    assert not pair.a._sender._outstanding and pair.a.next_deadline == inf
    assert types(pair.packets["a"]) == [wire.DATA, wire.FORWARD_TSN]
    network.passes = lambda to, packet: True
    talk(pair)


def test_a_message_is_sent_again_as_often_as_it_may_be() -> None:
    network = Network()
    pair = connected(network)
    network.passes = lambda to, packet: wire.DATA not in [type for type, _, _ in chunks(packet)]
    say(pair.a, b"three times", retransmits=2)
    pair.run(10.0)
    assert types(pair.packets["a"]).count(wire.DATA) == 3 and not pair.a._sender._outstanding


def test_a_long_message_of_which_a_part_is_lost_is_given_up_whole() -> None:
    network = Network()
    pair = connected(network)
    lost = network.sent + 3
    network.passes = lambda to, packet: network.sent != lost
    say(pair.a, b"x" * 65536)
    say(pair.a, b"next")
    pair.run(1.0)
    assert pair.heard("b") == [b"next"]
    assert types(pair.packets["a"]).count(wire.DATA) < 40  # of 59: the rest was not sent
    assert not pair.b._receiver._fragments and pair.b._receiver._held == 0 == pair.a.buffered
    talk(pair)


@pytest.mark.parametrize("order", [(1, 3, 4), (3, 4, 1), (4, 3, 1)])
def test_of_a_message_that_was_given_up_no_fragment_is_kept_however_late(order: tuple[int, ...]) -> None:
    pair = connected()
    enemy = Enemy(pair)
    flags = {1: wire.FIRST, 3: 0, 4: wire.LAST}
    for number, tsn in enumerate(order):
        if number == 1:
            enemy.write(wire.chunk(wire.FORWARD_TSN, wire.TSN(enemy.tsn + 2 & 0xFFFFFFFF)))
        enemy.write(enemy.data(tsn, flags[tsn] | wire.UNORDERED))
    assert not pair.b._receiver._fragments and pair.b._receiver._held == 0
    enemy.write(enemy.data(5, wire.FIRST), enemy.data(6, wire.LAST))
    assert pair.b.take_events() == [Received(1, BINARY, b"xx")]


def test_a_peer_that_is_not_heard_of_is_asked_ever_more_seldom_and_then_gone() -> None:
    pair = connected()
    pair.network.loss = 1.0
    say(pair.a, b"x" * 5000, retransmits=None)
    sent: list[float] = []
    rto = pair.a._sender.rto
    for _ in range(3000):
        before = len(pair.packets["a"])
        pair.run(0.01)
        if len(pair.packets["a"]) > before:
            sent.append(pair.now)
    waits = [later - earlier for earlier, later in zip(sent, sent[1:], strict=False)]
    expected = [min(rto * 2**number, RTO_MOST) for number in range(MAX_RETRANSMITS)]
    assert waits == pytest.approx(expected, abs=0.02)
    assert pair.events["a"] == [Closed("the peer does not acknowledge")]


def test_the_round_trip_is_measured_and_not_by_what_was_sent_twice() -> None:
    network = Network(loss=0.2)
    pair = connected(Network())
    pair.network.loss = 0.2
    for _ in range(300):
        say(pair.a, b"x" * 500, retransmits=None)
        pair.run(0.02)
    assert 2 * DELAY <= pair.a.rtt <= 2 * DELAY + 2 * sctp_receive.SACK_DELAY  # a SACK may be lost, too
    assert network.sent == 0


# What the network can carry


def carried(loss: float, seconds: float = 20.0) -> tuple[int, int]:
    """Bytes of an endless stream that arrived, and the most that was under way in the second half."""
    pair = connected(Network(7))
    pair.network.loss = loss
    most = 0
    for step in range(int(seconds / 0.01)):
        while pair.a.buffered < 300_000:
            say(pair.a, bytes(20_000), retransmits=None)
        pair.run(0.01)
        if step > seconds / 0.02:
            most = max(most, pair.a._sender._flight)
    return sum(map(len, pair.heard("b"))), most


@pytest.mark.timeout(120)  # seconds, for a busy machine; it takes 1
def test_who_loses_a_fifth_slows_down() -> None:
    free, most_free = carried(0.0)
    bad, most_bad = carried(0.2)
    assert free > 50_000_000 and most_free > sctp_send.MOST_WINDOW - 2 * wire.MAX_PACKET
    assert bad < free / 20 and most_bad <= 2 * LEAST_WINDOW
    assert bad > 300_000  # and does not stand still


def test_the_window_grows_only_if_it_is_used_and_a_loss_halves_it() -> None:
    pair = connected()
    for _ in range(300):
        say(pair.a, b"x" * 1000)
        pair.run(1 / 60)
    sender = pair.a._sender
    assert sender.window == sctp_send.FIRST_WINDOW
    lost = 0

    def passes(to: str, packet: bytes) -> bool:
        nonlocal lost
        if lost or to == "a" or sender.window < 100_000:
            return True
        lost = sender.window
        return False

    pair.network.passes = passes
    while not lost:
        say(pair.a, bytes(20_000), retransmits=None)
        pair.run(0.01)
    pair.run(2.5 * DELAY)
    assert sender._tries == 0 and lost // 2 <= sender.window <= lost // 2 + 10 * wire.MAX_PACKET


def test_a_peer_that_takes_nothing_but_answers_is_kept() -> None:
    pair = connected()
    sender, header = pair.a._sender, wire.Header(pair.a._tag)
    say(pair.a, b"x" * 3000, retransmits=None)
    for _ in range(6000):
        pair.now += 0.01
        pair.a.run(pair.now)
        if pair.a.transmit(pair.now):
            pair.a.receive(header.packet(wire.sack(sender._acked, 0, [])), pair.now)
    assert pair.a.take_events() == []
    pair.a.receive(header.packet(wire.sack(sender._acked, 10_000, [])), pair.now)
    pair.run(1.0)
    assert pair.heard("b") == [b"x" * 3000]


def test_a_full_window_of_the_peer_is_respected_and_probed_until_it_opens() -> None:
    pair = connected()
    sender = pair.a._sender
    pair.run(0.1)
    header = wire.Header(pair.a._tag)
    pair.a.receive(header.packet(wire.sack(sender._acked, 0, [])), pair.now)
    for _ in range(20):
        say(pair.a, b"x" * 1000, retransmits=None)
    probe = pair.a.transmit(pair.now)
    assert types(probe) == [wire.DATA]
    assert pair.a.transmit(pair.now) == []
    pair.a.receive(header.packet(wire.sack(sender._acked + 1, 0, [])), pair.now + 0.1)
    assert types(pair.a.transmit(pair.now + 0.1)) == [wire.DATA]
    pair.a.receive(header.packet(wire.sack(sender._acked + 1, 10_000, [])), pair.now + 0.2)
    assert 9 <= types(pair.a.transmit(pair.now + 0.2)).count(wire.DATA) <= 11


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("doubled", "jitter"), [(0.0, 0.0), (0.1, 0.05)])
def test_of_a_games_messages_as_many_arrive_as_the_network_lets_through(
    loss: float, doubled: float, jitter: float
) -> None:
    count, on_time, late = 1200, 0, 0
    pair = connected(Network(2026))
    pair.network.loss, pair.network.doubled, pair.network.jitter = loss, doubled, jitter
    said: dict[bytes, float] = {}
    held = 0
    for number in range(count):
        for end, name in ((pair.a, b"a"), (pair.b, b"b")):
            payload = b"%b%d" % (name, number)
            said[payload] = pair.now
            assert say(end, payload)
        pair.run(1 / 60)
        held = max(held, *(len(end._sender._outstanding) for end in (pair.a, pair.b)))
    pair.network.loss = 0.0
    pair.run(3.0)
    heard = pair.heard("a") + pair.heard("b")
    assert len(set(heard)) == len(heard)  # none twice
    for name in pair.ends:
        for event, when in zip(pair.events[name], pair.times[name], strict=True):
            assert isinstance(event, Received)
            if when <= said[event.payload] + DELAY + jitter + 0.001:
                on_time += 1
            else:
                late += 1
    deviation = 4 * sqrt(loss * (1 - loss) / (2 * count))
    assert abs((on_time + late) / (2 * count) - (1 - loss)) <= deviation
    assert late <= 0.02 * count  # none had to wait long for a window
    assert held < 60
    for end in (pair.a, pair.b):
        assert end.buffered == end._receiver._held == 0 and not end._sender._outstanding and end.shed == 0
    talk(pair)


def test_what_must_arrive_arrives_in_order_over_the_worst_network() -> None:
    for seed in range(6):
        pair = connected(Network(seed))
        pair.network.loss, pair.network.doubled, pair.network.jitter = 0.2, 0.2, 0.1
        random = Random(seed)
        sent = [random.randbytes(random.choice((10, 100, 3000))) for _ in range(100)]
        for payload in sent:
            assert say(pair.a, payload, ordered=True, retransmits=None)
            say(pair.a, b"may be lost", stream=2)
            say(pair.b, random.randbytes(3000), ordered=bool(seed % 2), retransmits=seed // 2)
            pair.run(0.02)
            check(pair)
        pair.run(20.0)
        check(pair)
        heard = pair.heard("b")
        assert [payload for payload in heard if payload != b"may be lost"] == sent
        assert heard.count(b"may be lost") > 40


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_said_over_whatever_network_nothing_is_doubled_and_nothing_stays_behind(seed: int) -> None:
    random, pair = Random(seed), connected(Network(seed), both=bool(seed % 2))
    network = pair.network
    network.loss, network.doubled, network.jitter = (random.choice((0.0, 0.05, 0.4)) for _ in range(3))
    sent: dict[tuple[str, int], list[bytes]] = {(name, stream): [] for name in "ab" for stream in (1, 2)}
    for step in range(150):
        for name, end in pair.ends.items():
            kind, payload = random.randrange(5), b"%d " % step + random.randbytes(random.choice((5, 100, 3000, 20_000)))
            if kind < 2:
                say(end, payload, 3, ordered=random.random() < 0.3, retransmits=random.choice((0, 0, 2)))
            elif kind == 2:
                stream = random.choice((1, 2))
                assert say(end, payload, stream, ordered=True, retransmits=None)
                sent[name, stream].append(payload)
        pair.run(random.choice((0.001, 0.02, 0.1)))
        check(pair)
    network.loss = 0.0
    pair.run(60.0)
    for (name, stream), payloads in sent.items():
        events = pair.events["b" if name == "a" else "a"]
        assert [one.payload for one in events if isinstance(one, Received) and one.stream == stream] == payloads
    for end in pair.ends.values():
        assert not end._sender._outstanding and end.buffered == end._receiver._held == 0 and not end._receiver._blocks
    assert len(set(pair.heard("a"))) == len(pair.heard("a")) and len(set(pair.heard("b"))) == len(pair.heard("b"))


# What waits


def test_of_what_may_be_lost_the_oldest_makes_room_and_is_counted() -> None:
    pair = connected()
    pair.network.loss = 1.0
    sent = [b"%05d" % number * 100 for number in range(1000)]
    for payload in sent:
        assert say(pair.a, payload)
        assert pair.a.buffered < STALE + 1000 + sctp_send.FIRST_WINDOW + wire.MAX_PACKET
        pair.run(0.0)
    assert 780 < pair.a.shed < 820
    pair.network.loss = 0.0
    pair.run(3.0)
    assert pair.heard("b") == sent[-len(pair.heard("b")) :] and len(pair.heard("b")) > 100


def test_a_long_message_is_not_kept_back_by_short_ones_nor_refused() -> None:
    pair = connected()
    for number in range(300):
        say(pair.a, b"%d" % number * 100)
        if number % 50 == 0:
            assert say(pair.a, bytes(65536))
            say(pair.a, b"beside it")
        pair.run(0.02)
    pair.run(3.0)
    assert [len(payload) for payload in pair.heard("b")].count(65536) == 6 and pair.a.shed == 0


def test_an_ordered_message_that_was_shed_is_not_waited_for() -> None:
    pair = connected()
    pair.network.loss = 1.0
    for number in range(200):
        say(pair.a, b"%05d" % number * 300, ordered=True)
        pair.run(0.0)
    assert pair.a.shed > 80 and len(pair.a._sender._outstanding) < 20
    pair.network.loss = 0.0
    pair.run(5.0)
    heard = pair.heard("b")
    assert heard == sorted(heard) and len(heard) > 50
    talk(pair)


@pytest.mark.parametrize("size", [1000, 2000])
def test_both_kinds_have_their_turn(size: int) -> None:
    pair = connected()
    for number in range(200):
        assert say(pair.a, b"must %d" % number + bytes(size), ordered=True, retransmits=None)
    for number in range(40):
        say(pair.a, b"may %d" % number + bytes(size))
    pair.run(0.6)
    first = [payload[:3] for payload in pair.heard("b")[:60]]
    assert 25 <= first.count(b"may") <= 35


def test_what_must_arrive_is_refused_above_a_mebibyte_and_does_not_crowd_out_the_rest() -> None:
    pair = connected()
    pair.network.loss = 1.0
    taken = sum(say(pair.a, bytes(10_000), retransmits=None) for _ in range(300))
    assert 90 <= taken <= 105
    assert say(pair.a, b"may be lost") and pair.a.shed == 0


# Streams (RFC 6525), heartbeats, the end


def test_a_stream_that_is_reset_begins_anew_on_both_sides() -> None:
    for seed in range(10):
        pair = connected(Network(seed))
        pair.network.loss, pair.network.jitter = (0.2, 0.1) if seed else (0.0, 0.0)
        for number in range(5):
            say(pair.a, b"before %d" % number, 3, ordered=True, retransmits=None)
        pair.run(0.0)
        pair.a.reset_stream(3, pair.now)
        pair.run(8.0)
        assert pair.events["b"] == [
            *(Received(3, BINARY, b"before %d" % number) for number in range(5)),
            StreamReset((3,)),
        ]
        say(pair.a, b"after", 3, ordered=True, retransmits=None)
        say(pair.a, b"other", 1, ordered=True, retransmits=None)
        pair.run(5.0)
        assert sorted(pair.heard("b")[5:]) == [b"after", b"other"]
        assert pair.a._reset is None and pair.a.next_deadline == inf


def test_a_reset_waits_for_what_was_sent_before_it() -> None:
    pair = connected()
    say(pair.a, b"before", 3, ordered=True, retransmits=None)
    lost = pair.a.transmit(pair.now)
    pair.a.reset_stream(3, pair.now)
    pair.run(3 * DELAY)
    assert len(lost) == 1 and pair.events["b"] == []
    pair.run(2.0)
    assert pair.events["b"] == [Received(3, BINARY, b"before"), StreamReset((3,))]


def test_who_does_not_answer_a_reset_is_gone_in_the_end() -> None:
    pair = connected()
    pair.network.loss = 1.0
    pair.a.reset_stream(1, pair.now)
    pair.a.reset_stream(2, pair.now)
    pair.run(60.0)
    assert types(pair.packets["a"]) == [wire.RE_CONFIG] * (MAX_RETRANSMITS + 1)
    assert pair.events["a"] == [Closed("the peer does not answer")]


def test_a_reset_lets_go_of_what_waited() -> None:
    pair = connected()
    enemy = Enemy(pair)
    enemy.write(enemy.data(1, WHOLE, bytes(500), stream=3, number=5))
    assert pair.b._receiver._held == 500 + HOLDING
    numbers = pack("!LLLH", 9, 0, enemy.tsn + 1 & 0xFFFFFFFF, 3)
    enemy.write(wire.chunk(wire.RE_CONFIG, wire.parameter(wire.OUTGOING_RESET, numbers)))
    assert pair.b._receiver._held == 0 and pair.b.take_events() == [StreamReset((3,))]


def test_that_we_reset_is_not_for_the_peer_to_ask() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for number in range(100):
        body = pack("!L500H", number, *range(500))
        enemy.write(wire.chunk(wire.RE_CONFIG, wire.parameter(wire.INCOMING_RESET, body)))
    answers = [
        body for packet in pair.b.transmit(pair.now) for type, _, body in chunks(packet) if type == wire.RE_CONFIG
    ]
    assert len(answers) == 100 and {unpack_from("!L", body, 8)[0] for body in answers} == {2}  # denied
    assert not pair.b._resets and pair.b._reset is None


def test_a_probe_is_answered_and_only_its_own_nonce_counts() -> None:
    pair = connected()
    packet = pair.a.probe(pair.now)
    assert packet is not None
    header = wire.Header(pair.a._tag)
    for nonce in (bytes(16), b""):
        pair.a.receive(header.packet(wire.chunk(wire.HEARTBEAT_ACK, wire.parameter(1, nonce))), pair.now)
    assert pair.a.take_events() == []
    pair.b.receive(packet, pair.now)
    (answer,) = pair.b.transmit(pair.now)
    for _ in range(2):
        pair.a.receive(answer, pair.now)
    assert pair.a.take_events() == [Probed()]


def test_a_polite_end_is_answered_and_repeated_until_it_is() -> None:
    pair = connected(Network(5))
    say(pair.a, b"x" * 3000, retransmits=None)
    lost = pair.network.sent + 1
    pair.network.passes = lambda to, packet: pair.network.sent > lost
    pair.a.shutdown(pair.now)
    pair.run(3.0)
    assert types(pair.packets["a"]) == [wire.SHUTDOWN, wire.SHUTDOWN, wire.SHUTDOWN_COMPLETE]
    assert pair.events == {"a": [Closed("shut down")], "b": [Closed("shut down by the peer")]}
    assert pair.a.next_deadline == pair.b.next_deadline == inf


def test_an_abort_ends_both_at_once_and_says_why() -> None:
    pair = connected()
    for number in range(3):
        say(pair.a, b"x" * 20_000, ordered=True, retransmits=None)
        Enemy(pair).write(Enemy(pair).data(2 + number, wire.FIRST, bytes(1000)))
    pair.a.abort("no more")
    pair.a.abort("no more")
    pair.run(0.1)
    assert pair.events == {"a": [Closed("no more")], "b": [Closed("aborted by the peer")]}
    ((_, _, body),) = chunks(pair.packets["a"][0])
    assert body == pack("!HH", 12, 11) + b"no more"
    assert pair.a.buffered == pair.b._receiver._held == 0
    pair.b.receive(pair.packets["a"][0], pair.now)
    pair.run(60.0)
    assert len(pair.events["b"]) == 1


@pytest.mark.parametrize(("flags", "mine", "ends"), [(0, True, True), (0, False, False), (1, False, True)])
def test_an_abort_without_our_tag_must_have_the_peers(flags: int, mine: bool, ends: bool) -> None:
    pair = connected()
    tag = pair.b._tag if mine else pair.b._peer_tag
    pair.b.receive(wire.Header(tag).packet(wire.chunk(wire.ABORT, flags=flags)), pair.now)
    assert (pair.b.take_events() == [Closed("aborted by the peer")]) == ends


def test_unknown_chunks_are_passed_over_or_end_the_packet_as_their_type_says() -> None:
    pair = connected()
    enemy = Enemy(pair)
    enemy.write(wire.chunk(0xC1, b"pass over"), enemy.data(1, WHOLE | wire.UNORDERED, b"1"))
    enemy.write(wire.chunk(0x3F, b"stop"), enemy.data(2, WHOLE | wire.UNORDERED, b"2"))
    enemy.write(wire.chunk(wire.ERROR, b"whatever"), enemy.data(2, WHOLE | wire.UNORDERED, b"3"))
    assert [event.payload for event in pair.b.take_events() if isinstance(event, Received)] == [b"1", b"3"]


# Enemies: what they can make us hold is bounded, and costs only themselves


def test_first_fragments_without_an_end_fill_the_window_and_no_more() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for tsn in range(1, 20_001, 50):
        enemy.write(*(enemy.data(tsn + number, wire.FIRST | wire.UNORDERED, b"x") for number in range(50)))
    receiver = pair.b._receiver
    assert len(receiver._fragments) * HOLDING <= WINDOW + 3 * 65536
    acknowledged, window, _ = enemy.sack()
    assert window == 0 and acknowledged == len(receiver._fragments)
    enemy.write(wire.chunk(wire.FORWARD_TSN, wire.TSN(enemy.tsn + acknowledged & 0xFFFFFFFF)))  # moves nothing
    enemy.write(wire.chunk(wire.FORWARD_TSN, wire.TSN(enemy.tsn + acknowledged + 1 & 0xFFFFFFFF)))
    assert not receiver._fragments and receiver._held == 0 and enemy.sack()[1] == WINDOW


def test_a_message_longer_than_allowed_is_dropped_and_the_next_is_heard() -> None:
    pair = connected()
    enemy = Enemy(pair)
    count = 70
    for number in range(count):
        flags = (wire.FIRST if number == 0 else 0) | (wire.LAST if number == count - 1 else 0)
        enemy.write(enemy.data(1 + number, flags | wire.UNORDERED, bytes(1000)))
    enemy.write(enemy.data(count + 1, WHOLE | wire.UNORDERED, b"next"))
    assert pair.b.take_events() == [Received(1, BINARY, b"next")] and pair.b._receiver._held == 0


def test_far_tsns_and_many_gaps_are_not_remembered() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for tsn in range(3, 4000, 2):
        enemy.write(enemy.data(tsn, WHOLE | wire.UNORDERED))
    for tsn in (5000, 1 << 20, 1 << 30, (1 << 31) - 2, -1, -(1 << 30)):
        enemy.write(enemy.data(tsn, WHOLE | wire.UNORDERED))
    cumulative, _, gaps = enemy.sack()
    assert cumulative == 0 and gaps == [(3 + 2 * number, 3 + 2 * number) for number in range(GAPS)]
    assert len(pair.b.take_events()) == GAPS
    for tsn in range(1, 200):
        enemy.write(enemy.data(tsn, WHOLE | wire.UNORDERED))
    assert enemy.sack() == (199, WINDOW, []) and len(pair.b.take_events()) == 199 - GAPS


def test_a_peer_cannot_give_up_what_is_far_ahead() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for tsn in (sctp_receive.AHEAD + 1, 1 << 20, 1 << 30, 0, -1):
        enemy.write(wire.chunk(wire.FORWARD_TSN, wire.TSN(enemy.tsn + tsn & 0xFFFFFFFF)))
    assert enemy.sack()[0] == 0
    enemy.write(wire.chunk(wire.FORWARD_TSN, wire.TSN(enemy.tsn + sctp_receive.AHEAD & 0xFFFFFFFF)))
    assert enemy.sack()[0] == sctp_receive.AHEAD


def test_thousands_of_streams_leave_no_trace() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for stream in range(STREAMS, 65536, 37):
        enemy.write(enemy.data(1, WHOLE, stream=stream, number=3))
        enemy.write(wire.chunk(wire.FORWARD_TSN, wire.TSN(enemy.tsn + 2 & 0xFFFFFFFF) + pack("!HH", stream, 9)))
        enemy.tsn += 2
    receiver = pair.b._receiver
    assert not receiver._ordered and not receiver._expected and receiver._held == 0
    for number in range(10_000):
        enemy.tsn += 1
        enemy.write(enemy.data(0, WHOLE, bytes(200), stream=number % STREAMS, number=1 + number // STREAMS))
    assert receiver._held <= WINDOW + 2 * 65536
    assert pair.b.take_events() == []


def test_the_same_number_twice_is_one_message_and_a_past_one_none() -> None:
    pair = connected()
    enemy = Enemy(pair)
    for tsn, number, payload in ((1, 2, b"2"), (2, 2, b"2 again"), (3, 0, b"0"), (4, 0, b"0 again"), (5, 1, b"1")):
        enemy.write(enemy.data(tsn, WHOLE, payload, number=number))
    assert [event.payload for event in pair.b.take_events() if isinstance(event, Received)] == [b"0", b"1", b"2"]
    assert pair.b._receiver._held == 0


def test_who_never_moves_its_acknowledgement_on_is_sent_no_more() -> None:
    pair = connected()
    sender, header = pair.a._sender, wire.Header(pair.a._tag)
    stuck = sender._acked
    for _ in range(3000):
        pair.now += 0.01
        say(pair.a, b"x" * 900)
        pair.a.transmit(pair.now)
        last = sender.next_tsn - 1
        if last > stuck + 1:  # all but the first, so that nothing seems to be under way
            pair.a.receive(header.packet(wire.sack(stuck, 1 << 30, [[stuck + 2, last]])), pair.now)
        pair.a.run(pair.now)
        assert len(sender._outstanding) <= MAX_OUTSTANDING and pair.a.buffered < 150_000
    assert sender.shed > 200 and pair.a.take_events() == [Closed("the peer does not acknowledge")]


def test_a_sack_of_what_was_never_sent_or_of_nonsense_changes_nothing() -> None:
    pair = connected()
    say(pair.a, b"x" * 5000, retransmits=None)
    pair.a.transmit(pair.now)
    sender, header = pair.a._sender, wire.Header(pair.a._tag)
    flight, acked = sender._flight, sender._acked
    for cumulative in (acked + 100, acked - 1, acked + (1 << 31) - 1):
        pair.a.receive(header.packet(wire.sack(cumulative, 0, [])), pair.now)
    for gaps in ([[acked + 50, acked + 60]], [[acked + 9, acked + 2]], [[acked, acked]]):
        pair.a.receive(header.packet(wire.sack(acked, 1 << 20, gaps)), pair.now)
    pair.a.receive(
        header.packet(wire.CHUNK.pack(wire.SACK, 0, 16) + pack("!LLHH", acked & 0xFFFFFFFF, 0, 9, 0)), pair.now
    )
    assert (sender._flight, sender._acked) == (flight, acked)
    pair.run(1.0)
    assert pair.heard("b") == [b"x" * 5000]


def test_a_sack_that_ends_in_the_middle_of_a_packet_loses_nothing_that_must_arrive() -> None:
    pair = connected()
    item = bundled(b"0", b"1", b"2", b"3")
    pair.a.push((item,), item.size)
    (packet,) = pair.a.transmit(pair.now)
    sender, header = pair.a._sender, wire.Header(pair.a._tag)
    first = sender._acked + 1
    pair.a.receive(header.packet(wire.sack(first, 1 << 20, [[first + 2, first + 2]])), pair.now)
    assert sender._flight > 0 and len(sender._outstanding) == 1
    pair.b.receive(packet, pair.now)
    pair.run(1.0)
    assert pair.heard("b") == [b"0", b"1", b"2", b"3"] and not sender._outstanding and sender._flight == 0


def test_chunks_of_chance_raise_nothing_and_leave_the_neighbour_alone() -> None:
    """The tag and the checksum are right: all that is inside is not."""
    random = Random(9260)
    neighbour, pair = connected(), connected()
    for packet in (b"x" * 3000, b"short"):
        say(pair.a, packet, ordered=True, retransmits=None)
        say(pair.a, packet)
    pair.a.reset_stream(7, pair.now)
    pair.run(0.5)
    seen = [packet[12:] for packet in pair.packets["a"]]
    ended = 0
    for number in range(4000):
        content = bent(random, seen)
        pair.b.receive(wire.Header(0 if content[0] == wire.INIT else pair.b._tag).packet(content), pair.now)
        pair.b.transmit(pair.now)
        if any(isinstance(event, Closed) for event in pair.b.take_events()):
            ended += 1
            pair = connected(Network(number))
        receiver = pair.b._receiver
        assert receiver._held <= WINDOW + 3 * 65536 and len(receiver._blocks) <= GAPS
    assert 0 < ended < 1500  # by chance it was an ABORT
    talk(neighbour)


@pytest.mark.timeout(120)  # seconds, for a busy machine; it takes 2
def test_a_thousand_associations_leave_nothing_behind() -> None:
    def live(count: int) -> None:
        for seed in range(count):
            pair = Pair(Network(seed))
            pair.a.connect(0.0)
            pair.run(0.1)
            say(pair.a, b"x" * 3000, retransmits=None)
            say(pair.b, b"y")
            pair.run(0.1)
            pair.a.abort("done") if seed % 2 else pair.b.shutdown(pair.now)
            pair.run(0.1)
            assert isinstance(pair.events["a"][-1], Closed) and isinstance(pair.events["b"][-1], Closed)

    live(20)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        live(1000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000  # bytes
    finally:
        tracemalloc.stop()


def test_a_frame_for_many_is_not_changed_by_any() -> None:
    message = Message(1, BINARY, b"x" * 3000)
    assert message.size == sum(4 + len(one) for one in message.blanks)
    pairs = [connected(Network(seed)) for seed in range(3)]
    pairs[1].network.loss = 1.0
    for pair in pairs:
        pair.a.push((message, message), 2 * message.size)
        pair.run(3.0)
    assert [len(pair.heard("b")) for pair in pairs] == [2, 0, 2]


@pytest.mark.parametrize("tsn", [1, (1 << 32) - 2, (1 << 32) + 5])
def test_a_bundle_is_what_its_messages_are_one_by_one(tsn: int) -> None:
    messages = [Message(1, BINARY, bytes([65 + size]) * size) for size in (1, 2, 3, 4, 97)]
    item = bundled(*[message.payload for message in messages])
    assert item.count == 5 and item.stream == 1
    one_by_one = [
        blank[:4] + wire.TSN(tsn + at & 0xFFFFFFFF) + blank[4:]
        for at, blank in enumerate(message.blanks[0] for message in messages)
    ]
    assert item.content(tsn) == item.content(tsn) == b"".join(one_by_one)
    assert item.size == len(item.content(tsn)) == sum(message.size for message in messages)


def test_bundles_are_filled_one_after_the_other_and_long_messages_stay_alone() -> None:
    sizes = [500, 500, 500, 3000, 20, 1132, 20, 20]
    found, others = bundle(b"".join(joined(b"x" * size) for size in sizes))
    assert [one.count if isinstance(one, Bundle) else "long" for one in found] == [2, 1, "long", 1, 1, 2]
    assert all(one.size <= wire.MAX_CONTENT for one in found if isinstance(one, Bundle))
    found, others = bundle(b"".join(joined(b"x" * size) for size in sizes[:3] + sizes[4:]))
    assert [one.count for one in found] == [2, 2, 1, 2] and others == []
    assert bundle(b"") == ([], [])


@given(st.lists(st.tuples(st.integers(1, 4000), st.booleans()), max_size=30))
def test_what_is_joined_can_be_told_apart(kinds: list[tuple[int, bool]]) -> None:
    contents = [(bytes([number + 1]) * size, ordered) for number, (size, ordered) in enumerate(kinds)]
    blob = b"".join(joined(content, ordered) for content, ordered in contents)
    found = [(one.payload, one.ordered) for one in sctp_messages.messages(blob)]
    assert found == contents
    once, others = bundle(blob)
    assert [one.payload for one in others] == [content for content, ordered in contents if ordered]
    assert all((one.stream, one.ppid, one.retransmits) == (7, BINARY, None) for one in others)
    assert sum(one.count for one in once) == len([None for _, ordered in contents if not ordered])
    pair = connected()
    pair.a.push(once, sum(one.size for one in once))
    pair.run(2.0)
    assert pair.heard("b") == [content for content, ordered in contents if not ordered]


def joined(payload: bytes, ordered: bool = False) -> bytes:
    return b"".join(sctp_messages.blanks(7, BINARY, payload, ordered))


def test_a_bundle_that_need_not_wait_leaves_at_once() -> None:
    pair = connected()
    item = bundled(b"one", b"two")
    packet = pair.a.send_at_once(item, pair.now)
    assert packet is not None and pair.a.transmit(pair.now) == []
    pair.b.receive(packet, pair.now)
    pair.run(0.5)
    assert pair.heard("b") == [b"one", b"two"] and pair.a.buffered == 0 and pair.a.rtt > 0


def bundled(*payloads: bytes) -> Bundle:
    """One for `send_at_once`."""
    ((item,), _) = bundle(b"".join(blank for payload in payloads for blank in sctp_messages.blanks(1, BINARY, payload)))
    assert isinstance(item, Bundle)
    return item


def test_nothing_overtakes_what_waits_and_a_sack_takes_the_next_packet() -> None:
    pair = connected()
    item = bundled(b"one")
    pair.a.push((item,), item.size)
    assert pair.a.send_at_once(item, pair.now) is None  # one waits already
    (packet,) = pair.a.transmit(pair.now)
    pair.b.receive(packet, pair.now)
    assert pair.b.send_at_once(bundled(b"x" * 1100), pair.now) is None  # with which a SACK might not fit
    packet = pair.b.send_at_once(item, pair.now)
    assert packet is not None and types([packet]) == [wire.SACK, wire.DATA] and pair.b.sack_at == inf
    pair.a.receive(packet, pair.now)
    assert pair.a.buffered == 0
    pair.run(0.5)
    left = 0
    while pair.a.send_at_once(item, pair.now) is not None:
        left += item.size
        assert left < pair.a._sender.window + item.size
    assert left >= pair.a._sender.window  # which is full
    pair.a.push((item,), item.size)
    assert pair.a.transmit(pair.now) == []


def test_the_longest_sack_is_as_long_as_is_said() -> None:
    gaps = [[tsn, tsn] for tsn in range(2, 2 + 2 * sctp_receive.GAPS, 2)]
    assert len(wire.sack(0, WINDOW, gaps)) == sctp_receive.LONGEST_SACK
    assert len(wire.sack(7, WINDOW, [])) == 16 and wire.sack(7, WINDOW, []) == wire.chunk(
        wire.SACK, wire.SACK_HEAD.pack(7, WINDOW, 0, 0)
    )


@pytest.mark.parametrize("seed", range(6))
def test_what_leaves_at_once_is_counted_as_all_else_under_loss_and_between_other_messages(seed: int) -> None:
    pair = connected(Network(seed))
    pair.network.loss = 0.1
    random, item, sent, steps = pair.network.random, bundled(b"one", b"two"), 0, 0
    while steps < 400:
        steps += 1
        if random.random() < 0.8:
            packet = pair.a.send_at_once(item, pair.now)
            if packet is None:
                pair.a.push((item,), item.size)
            else:
                pair.network.send("b", packet, pair.now)
            sent += item.count
        else:
            say(pair.a, b"lost perhaps")
            sent += 1
        if random.random() < 0.1:
            say(pair.a, b"kept", ordered=True, retransmits=None)
        check(pair)
        pair.run(0.004)
        check(pair)
    pair.network.loss = 0.0
    pair.run(3.0)
    check(pair)
    assert pair.a.buffered == 0 and not pair.a._sender._outstanding and not pair.a._sender._streak
    assert pair.a.arrived + pair.a.lost + pair.a.shed == sent and 0 < pair.a.lost < 0.2 * sent
    assert len([one for one in pair.heard("b") if one != b"kept"]) >= pair.a.arrived


def test_whole_bundles_are_shed_and_each_message_in_them_counts() -> None:
    pair = connected()
    pair.network.loss = 1.0
    item = bundled(*[b"x" * 200] * 4)
    pushed = 400
    shed = sum(pair.a.push((item,), item.size) for _ in range(pushed))
    assert shed == pair.a.shed and shed % 4 == 0
    assert STALE - item.size <= (4 * pushed - shed) / 4 * item.size <= STALE + item.size


def acknowledged(pair: Pair) -> bytes:
    """A bundle of `a` leaves and arrives; returns the SACK for it."""
    packet = pair.a.send_at_once(bundled(b"x" * 100), pair.now)
    assert packet is not None
    pair.b.receive(packet, pair.now)
    return pair.b.transmit(pair.now + 1)[0]


def test_an_acknowledgement_can_wait_unless_something_waits_for_it() -> None:
    pair = connected()
    assert not pair.a.can_wait  # none is expected
    sack = acknowledged(pair)
    assert pair.a.can_wait and pair.a.is_timing
    pair.a.receive(sack, pair.now)
    assert not (pair.a.can_wait or pair.a.is_timing)
    acknowledged(pair)
    assert pair.a.can_wait and not pair.a.is_timing
    say(pair.a, b"x")
    assert not pair.a.can_wait
    pair.a.transmit(pair.now)
    assert pair.a.can_wait
    pair.now += sctp_send.MEASURE_EVERY
    acknowledged(pair)
    assert pair.a.is_timing  # again


def test_a_message_after_a_pause_asks_for_its_acknowledgement_at_once() -> None:
    pair = connected()
    item, asked = bundled(b"one", b"two"), []
    for pause in (0.05, sctp_send.PAUSE, 0.016, 0.016, 1.0):
        pair.now += pause
        packet = pair.a.send_at_once(item, pair.now)
        assert packet is not None
        asked.append([bool(flags & wire.AT_ONCE) for _, flags, _ in chunks(packet)])
        pair.b.receive(packet, pair.now)
        assert not asked[-1][0] or types(pair.b.transmit(pair.now)) == [wire.SACK]
    assert asked == [[True, False], [True, False], [False, False], [False, False], [True, False]]
    assert (
        pair.heard("b") == [] and pair.b.take_events() == [Received(1, BINARY, b"one"), Received(1, BINARY, b"two")] * 5
    )


def test_what_left_after_a_sack_that_is_read_late_has_its_whole_time() -> None:
    pair = connected()
    pair.a.receive(acknowledged(pair), pair.now)
    pair.now += 0.01
    left = pair.now
    sack = acknowledged(pair)
    pair.now = left + 0.19
    item = bundled(b"x" * 100)
    assert pair.a.send_at_once(item, pair.now)
    due = pair.a.next_deadline
    assert due < pair.now + 0.05  # of the first, which has arrived
    pair.now = max(due, left + 0.27)
    pair.a.receive(sack, left + 0.05)
    pair.a.run(pair.now)
    assert pair.a.transmit(pair.now) == [] and pair.a.buffered == item.size, "given up 80 ms after it left"


def test_data_without_an_event_wants_a_look_for_its_sack() -> None:
    pair = connected()
    enemy = Enemy(pair)
    first = wire.Header(pair.b._tag).packet(enemy.data(1, wire.FIRST | wire.UNORDERED))
    assert pair.b.receive(first, pair.now) and pair.b.next_deadline < inf


def test_what_has_arrived_and_when_outlasts_a_new_beginning() -> None:
    pair = connected()
    pair.a.receive(acknowledged(pair), pair.now)
    pair.now += 0.01
    at = pair.now
    pair.a.receive(acknowledged(pair), at)
    pair.b = pair.ends["b"] = Association(random=pair.network.random.randbytes)
    pair.b.connect(pair.now)
    pair.run(0.5)
    assert Restarted() in pair.events["a"]
    assert (pair.a.arrived, pair.a.acked_at) == (2, at)


def test_a_last_packet_that_a_browser_acknowledges_late_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sctp_receive, "SACK_DELAY", 0.2)  # seconds; theirs, for one packet alone
    pair = connected()
    window = pair.a._sender.window
    for _ in range(20):
        for _ in range(3):  # the first two are acknowledged at once, so the way seems to be short
            say(pair.a, b"x" * 100)
            pair.run(0.016)
        pair.run(1.0)
    assert pair.a.arrived == 60 and pair.a._sender.window == window
    assert wire.FORWARD_TSN not in types(pair.packets["a"])
