"""A whole peer against a whole peer, in memory and in virtual time: connecting, talking, moving, and being lied to."""

from __future__ import annotations

import gc
import json
import re
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from math import ceil, inf
from os import urandom
from pathlib import Path
from random import Random
from typing import IO, Any

import pytest
from network import bent

from session_server.rtc import datachannel, sctp, sctp_chunks, sctp_send, sdp, stun
from session_server.rtc.datachannel import (
    MAX_CHANNELS,
    ChannelClosed,
    Closed,
    Event,
    Message,
    Opened,
    Options,
    Peer,
)
from session_server.rtc.dcep import DCEP, Channel
from session_server.rtc.dtls import Certificate
from session_server.rtc.paths import AMPLIFICATION, MAX_PATHS, PROBES
from session_server.rtc.sctp_receive import WINDOW
from session_server.rtc.stun import Address, Credentials

OURS, THEIRS = Certificate.new(), Certificate.new()
SERVER: Address = ("192.0.2.1", 8889)
CLIENT: Address = ("198.51.100.7", 50000)
MOVED: Address = ("198.51.100.7", 50001)
VICTIM: Address = ("203.0.113.9", 53)
LOCAL = Credentials.derive(b"secret", "XvkZjGJfZNCLnGd5QmQTF1aG")
DELAY = 0.02  # seconds one way
MTU = 1232  # bytes: what fits into the smallest packet of IPv6, 1280

OPENED = Opened(1, "geckos.io", "")


class World:
    """A server's peer, a client's peer, and the net between them, in which the client may move."""

    def __init__(
        self,
        seed: int = 0,
        loss: float = 0.0,
        jitter: float = 0.0,
        options: Options | None = None,
        client_options: Options | None = None,
        server_address: Address = SERVER,
        client_address: Address = CLIENT,
        answered: Callable[[str], str] = lambda answer: answer,
    ) -> None:
        self.random = Random(seed)
        self.loss = loss
        self.jitter = jitter  # seconds at most; above the time between two datagrams it reorders them
        self.now = 0.0
        self.at: dict[str, Address] = {"server": server_address, "client": client_address}
        options = options or Options(OURS)
        offer = sdp.write_offer(1, LOCAL, OURS.fingerprint, [server_address[:2]], options.max_message)
        self.client, answer = Peer.join(client_options or Options(THEIRS), offer, self.random.randbytes, 0.0)
        self.server = Peer.serve(options, LOCAL, sdp.parse_answer(answered(answer)), self.random.randbytes, 0.0)
        self.peers = {"server": self.server, "client": self.client}
        self.events: dict[str, list[Event]] = {"server": [], "client": []}
        self.sent: list[tuple[str, Address, bytes]] = []  # by whom, where to, what
        self.before_proof: dict[Address, list[int]] = {}  # the server's bytes from and to an address
        self._under_way: list[tuple[float, int, str, Address, bytes]] = []
        self.lose: Callable[[str, bytes], bool] = lambda name, datagram: self.random.random() < self.loss

    def run(self, duration: float) -> World:
        """Lets time pass, in seconds."""
        until = self.now + duration
        while True:
            for name in self.peers:
                self.step(name)
            arrival = self._under_way[0][0] if self._under_way else inf
            due = min(arrival, *(peer.next_deadline for peer in self.peers.values()))
            if due > until:
                self.now = until
                return self
            self.now = max(self.now, due)
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, name, source, datagram = heappop(self._under_way)
                self.deliver(name, source, datagram)
            for peer in self.peers.values():
                peer.run(self.now)

    def step(self, name: str) -> None:
        """Sends what one has to send, and reads what it has to say."""
        other = "client" if name == "server" else "server"
        for datagram, address in self.peers[name].transmit(self.now):
            assert len(datagram) <= MTU
            self.sent.append((name, address, datagram))
            if name == "server":
                self.before_proof.setdefault(address, [0, 0])[1] += len(datagram)
            if address == self.at[other] and not self.lose(name, datagram):
                arrival = self.now + DELAY + self.jitter * self.random.random()
                heappush(self._under_way, (arrival, len(self.sent), other, self.at[name], datagram))
        self.events[name] += self.peers[name].take_events()

    def deliver(self, name: str, source: Address, datagram: bytes) -> None:
        if name == "server":
            self.before_proof.setdefault(source, [0, 0])[0] += len(datagram)
        self.peers[name].receive(datagram, source, self.now)

    def talk(self) -> None:
        """Both say something and hear it."""
        for name, other in (("server", "client"), ("client", "server")):
            self.events[other].clear()
            assert self.peers[name].send(f"from {name}", self.now)
            self.run(0.2)
            assert self.events[other] == [Message(f"from {name}", 1)]

    def to(self, address: Address) -> list[bytes]:
        """What the server has sent there."""
        return [datagram for name, target, datagram in self.sent if name == "server" and target == address]


def connected(**arguments: object) -> World:
    world = World(**arguments).run(1.0)  # type: ignore[arg-type]
    assert world.events == {"server": [OPENED], "client": [OPENED]}
    for events in world.events.values():
        events.clear()
    world.sent.clear()
    return world


def messages(events: list[Event]) -> list[str | bytes]:
    return [event.data for event in events if isinstance(event, Message)]


def check(password: str = LOCAL.password, ufrag: str = LOCAL.ufrag, nominate: bool = True) -> bytes:
    return stun.check(bytes(12), "them", Credentials(ufrag, password), 1, bytes(8), nominate)


# Connecting


def test_both_sides_open_the_servers_channel_in_ten_trips() -> None:
    world = World().run(10 * DELAY + 0.001)
    assert world.events["server"] == [] and world.events["client"] == [OPENED]
    world.run(DELAY)
    assert world.events["server"] == [OPENED]
    assert world.peers["server"].state == world.peers["client"].state == "open"
    assert world.client.max_message_size == world.server.max_message_size == 65536


@pytest.mark.parametrize("own", [(True, False), (False, True), (False, False)])
def test_with_records_by_openssl_it_is_the_same(own: tuple[bool, bool]) -> None:
    connected(options=Options(OURS, own_records=own[0]), client_options=Options(THEIRS, own_records=own[1])).talk()


def test_over_ipv6_with_addresses_as_sockets_give_them() -> None:
    world = connected(server_address=("2001:db8::1", 8889), client_address=("2001:db8::2", 50000, 0, 0))
    assert world.server.address == ("2001:db8::2", 50000, 0, 0)
    world.talk()


def test_a_tenth_of_all_datagrams_lost_both_connect_and_most_messages_come() -> None:
    late, came = 0, 0
    for seed in range(30):
        world = World(seed, loss=0.1).run(6.0)
        opened = [name for name, events in world.events.items() if OPENED in events]
        late += len(opened) < 2
        if len(opened) < 2:
            world.run(9.0)
            assert all(OPENED in events for events in world.events.values()), seed
        for number in range(20):
            assert world.server.send(f"{number}", world.now)
            world.run(0.02)
        world.run(1.0)
        heard = messages(world.events["client"])
        assert len(heard) == len(set(heard))
        came += len(heard)
    assert late <= 1
    assert 0.8 < came / (30 * 20) < 0.97


def test_lost_and_reordered_datagrams_neither_double_a_message_nor_stop_the_stream() -> None:
    opened = 0
    for seed in range(20):
        world = World(seed, loss=0.15, jitter=0.05).run(8.0)
        opened += all(OPENED in events for events in world.events.values())
        for number in range(50):
            for peer in world.peers.values():
                peer.send(f"{number}", world.now)
            world.run(0.02)
        world.loss = 0.0
        world.run(3.0)
        for events in world.events.values():
            assert len(set(messages(events))) == len(messages(events)), seed
        if all(peer.state == "open" for peer in world.peers.values()):
            world.jitter = 0.0
            world.talk()
    assert opened >= 18


def test_reliable_messages_come_all_and_in_order_beside_those_that_may_be_lost() -> None:
    for seed in range(5):
        world = connected(seed=seed)
        world.loss, world.jitter = 0.2, 0.05
        for number in range(50):
            (message,) = datachannel.batch(packed(f"{number}", reliable=True)).others
            assert world.server.push_reliably(message)
            world.server.push_all(batch_of("may be lost"), world.now)
            world.run(0.02)
        world.loss = 0.0
        world.run(5.0)
        heard = messages(world.events["client"])
        assert [text for text in heard if text != "may be lost"] == [f"{number}" for number in range(50)], seed
        assert 20 < heard.count("may be lost") < 50, seed


def test_no_layer_can_keep_a_loop_busy() -> None:
    world = connected()
    world.run(10.0)
    for peer in world.peers.values():
        peer.run(world.now)
        assert peer.next_deadline > world.now
        assert peer._association is not None
        peer._association._receiver.sack_at = 0.0  # as if it had something to do that it does not do
        assert peer.next_deadline > world.now


def test_a_server_may_leave_it_to_the_client_to_open_channels() -> None:
    world = World(options=Options(OURS, label=None)).run(1.0)
    assert world.events == {"server": [], "client": []}
    open_from_client(world, 2, Channel("moves", "v1"))
    world.run(0.2)
    assert world.events["server"] == [Opened(2, "moves", "v1")]
    assert world.server.send("hello", world.now)  # the first channel is the main one
    assert world.server.push_all(batch_of("pushed"), world.now) == 1
    world.run(0.2)
    assert messages(world.events["client"]) == ["hello", "pushed"]


def test_without_an_answer_of_the_right_certificate_nothing_opens() -> None:
    other = Certificate.new().fingerprint.hex(":").upper()
    world = World(answered=lambda answer: re.sub("sha-256 .*?\r", f"sha-256 {other}\r", answer)).run(1.0)
    (closed,) = world.events["server"]
    assert isinstance(closed, Closed) and "certificate with fingerprint" in closed.reason
    assert [type(event) for event in world.events["client"]] == [Closed]


def test_what_is_not_open_in_time_is_given_up() -> None:
    world = World()
    world.loss = 1.0
    world.run(14.9)
    assert world.events == {"server": [], "client": []}
    world.run(0.2)
    assert world.events["server"] == world.events["client"] == [Closed("no channel was open after 15 s")]
    assert world.server.next_deadline == inf


# Talking


@pytest.mark.parametrize("name", ["server", "client"])
def test_text_and_bytes_of_any_size_stay_what_they_are(name: str) -> None:
    world = connected()
    sent: list[str | bytes] = ["hello ä", b"\x01\x02\x03", "", b"", "\0", b"\0", "x" * 65536, b"y" * 5000, b"\xff\xfe"]
    for data in sent:
        assert world.peers[name].send(data, world.now)
        world.run(0.5)
    assert messages(world.events["client" if name == "server" else "server"]) == sent


def test_a_message_that_the_peer_does_not_take_is_shed() -> None:
    world = connected(options=Options(OURS, max_message=1000))
    assert world.client.max_message_size == 1000
    assert not world.client.send("x" * 1001, world.now)
    assert world.client.send("x" * 1000, world.now)
    assert world.client.counters.shed == 1
    world.run(0.2)
    assert messages(world.events["server"]) == ["x" * 1000]


def test_the_messages_of_one_tick_share_datagrams() -> None:
    world = connected()
    for number in range(40):
        assert world.server.send(f"{number:>100}", world.now)
    datagrams = world.server.transmit(world.now)
    assert len(datagrams) == ceil(40 / ((sctp_chunks.MAX_PACKET - 12) // 116))
    for datagram, _ in datagrams:
        assert len(datagram) <= MTU
        world.deliver("client", SERVER, datagram)
    world.run(0.1)
    assert messages(world.events["client"]) == [f"{number:>100}" for number in range(40)]


def test_a_packed_frame_is_the_same_message() -> None:
    world = connected()
    frames: list[str | bytes] = ["hello ä", b"\x01", "", b"", "x" * 1140, b"y" * 3000]
    for data in frames:
        assert world.server.push_all(batch_of(data), world.now) == 1
        world.run(0.3)
    assert messages(world.events["client"]) == frames


def batch_of(*messages: str | bytes) -> datachannel.Batch:
    return datachannel.batch(b"".join(packed(data) for data in messages))


def packed(data: str | bytes, reliable: bool = False) -> bytes:
    is_text = isinstance(data, str)
    return datachannel.pack(data.encode() if isinstance(data, str) else data, is_text, reliable)


def test_a_batch_that_fits_into_one_datagram_leaves_at_once() -> None:
    world = connected(client_options=Options(THEIRS, max_message=2000))
    batch = batch_of("one", b"two", "")
    datagram = world.server.send_at_once(batch, world.now)
    assert datagram is not None and datagram[1] == CLIENT and len(datagram[0]) <= MTU
    assert world.server.transmit(world.now) == []
    world.deliver("client", SERVER, datagram[0])
    world.run(0.3)
    assert messages(world.events["client"]) == ["one", b"two", ""]
    for other in (batch_of(), batch_of("x" * 1500), batch_of("x" * 700, "y" * 700), batch_of("x" * 2001)):
        assert world.server.send_at_once(other, world.now) is None  # none, or several datagrams, or too long
    world.server.close(world.now)
    assert world.server.send_at_once(batch, world.now) is None


def at_once(world: World) -> Address | None:
    """Where a message of the server goes by the short way."""
    datagram = world.server.send_at_once(batch_of("x"), world.now)
    return None if datagram is None else datagram[1]


def test_nothing_leaves_at_once_to_an_address_that_is_not_proven_or_for_a_peer_that_takes_less_than_a_packet() -> None:
    world = connected()
    path = world.server._paths.current
    assert at_once(world) == CLIENT and path is not None
    path.proven = False
    world.server._find_short_way()
    assert at_once(world) is None
    world.server._aim(path, world.now)
    world.run(0.2)
    assert at_once(world) == CLIENT
    small = connected(client_options=Options(THEIRS, max_message=1000))
    assert at_once(small) is None
    assert small.server.push_all(batch_of("x" * 600, "y" * 500, "z" * 1001), small.now) == 2
    small.run(0.2)
    assert messages(small.events["client"]) == ["x" * 600, "y" * 500]


class Acknowledged:
    """A server that sends at once, and what its client answers: a lone acknowledgement each time, for the test to
    bring."""

    def __init__(self) -> None:
        self.world = connected()
        self.server, self.now = self.world.server, self.world.now + sctp_send.MEASURE_EVERY
        self.sent = 0
        self.bring(self.exchange())  # the first measures the way
        self.server.catch_up()

    def exchange(self) -> bytes:
        datagram = self.server.send_at_once(batch_of("x" * 100), self.now)
        assert datagram is not None
        self.sent += 1
        self.world.client.receive(datagram[0], SERVER, self.now)
        ((answer, _),) = self.world.client.transmit(self.now + 1)
        assert len(answer) == datachannel.SACK_ALONE
        return answer

    def bring(self, datagram: bytes) -> bool:
        return self.server.receive(datagram, CLIENT, self.now)


def test_acknowledgements_are_read_when_something_waits_for_them_and_the_newest_is_enough() -> None:
    it = Acknowledged()
    at = it.now
    for _ in range(5):
        it.now += 0.01
        assert not it.bring(it.exchange())
    assert (it.server.arrived, it.server.acked_at) == (1, at)
    assert not it.server.catch_up() and (it.server.arrived, it.server.acked_at) == (6, it.now)
    assert it.server.buffered == 0
    it.now += 0.01
    it.bring(it.exchange())
    it.server.run(it.now)
    assert it.server.arrived == it.sent and it.server.acked_at == it.now
    it.now += 0.01
    it.bring(it.exchange())
    assert it.server.transmit(it.now) == [] and it.server.arrived == it.sent
    for _ in range(300):
        it.now += 0.0001
        it.bring(it.exchange())
        assert it.server.buffered < datachannel.MAX_UNREAD * 120


def test_what_ends_a_measurement_is_read_before_the_next_message_leaves_and_counts_from_when_it_came() -> None:
    it = Acknowledged()
    assert it.server._association is not None
    for _ in range(40):  # rounds, in each of which the way takes 30 ms
        it.now += sctp_send.MEASURE_EVERY
        answer = it.exchange()
        it.now += 0.03
        assert not it.bring(answer)
        came = it.now
        it.now += 0.1
        it.exchange()
        assert it.server.arrived == it.sent - 1 and it.server.acked_at == came
        it.bring(it.exchange())  # the one before said nothing
    assert it.server._association.rtt == pytest.approx(0.03, abs=0.001)


def test_a_window_that_is_full_of_what_has_arrived_is_emptied_by_reading_and_does_not_grow_by_it() -> None:
    it = Acknowledged()
    assert it.server._association is not None
    sender = it.server._association._sender
    window, read = sender.window, 0
    for _ in range(500):
        unread = len(it.server._unread)
        it.now += 0.001
        it.bring(it.exchange())  # which leaves at once, each time
        read += len(it.server._unread) <= unread
    assert sender.window == window and 4 <= read <= 50
    left = 0
    while it.server.send_at_once(batch_of("x" * 100), it.now) is not None:
        left += 1
    assert 0 < left * 100 < window and it.server.transmit(it.now) == []


def test_as_long_as_acknowledgements_come_a_peer_may_rest_but_not_for_long_since_anybody_can_write_such() -> None:
    it = Acknowledged()
    assert it.server.rests_until(0.25) == 0.0
    first = it.now
    for number in range(5):
        it.now = first + 0.2 * number
        it.bring(it.exchange())
        assert it.server.rests_until(0.25) == min(it.now + 0.25, first + datachannel.UNREAD_FOR)
    it.server.catch_up()
    assert it.server.rests_until(0.25) == 0.0


def test_an_acknowledgement_that_was_overtaken_does_not_take_the_place_of_a_later_one() -> None:
    it = Acknowledged()
    first, second = it.exchange(), it.exchange()
    it.bring(second)
    it.bring(first)
    it.server.catch_up()
    assert it.server.arrived == it.sent == 3 and it.server.buffered == 0


def test_what_looks_like_an_acknowledgement_and_is_none_hides_none() -> None:
    it = Acknowledged()
    answer = it.exchange()
    forged = answer[:5] + b"\xff" * 6 + answer[11:]  # as if it were the newest
    client, dtls = it.world.client._association, it.world.client._dtls
    assert client is not None and dtls is not None
    nonce = sctp_chunks.parameter(1, b"12345678")
    asked = dtls.seal(client._header.packet(sctp_chunks.chunk(sctp_chunks.HEARTBEAT, nonce)))
    assert len(asked) == len(forged) == datachannel.SACK_ALONE
    assert not any(it.bring(datagram) for datagram in (answer, asked, forged))
    assert it.server.catch_up()  # there is something to answer
    assert it.server.arrived == it.sent
    ((reply, _),) = it.server.transmit(it.now)
    (packet,) = dtls.receive(reply, it.now)
    assert packet[12:] == sctp_chunks.chunk(sctp_chunks.HEARTBEAT_ACK, nonce)
    assert it.server._dtls is not None and it.server._dtls.forged == 1


def test_no_more_than_a_few_wait_to_be_read_whoever_sends_them() -> None:
    it = Acknowledged()
    answer = it.exchange()
    for number in range(1000):
        it.bring(answer[:3] + number.to_bytes(8, "big") + answer[11:])
        assert len(it.server._unread) <= datachannel.MAX_UNREAD
    it.bring(answer)
    it.server.catch_up()
    assert it.server.arrived == it.sent


def test_an_acknowledgement_beside_data_is_read_after_those_that_came_before() -> None:
    it = Acknowledged()
    assert it.world.client._association is not None
    receiver = it.world.client._association._receiver
    datagram = it.server.send_at_once(batch_of("x" * 100), it.now)
    assert datagram is not None
    it.world.client.receive(datagram[0], SERVER, it.now)
    receiver._held = WINDOW  # as if it had no room
    ((closed, _),) = it.world.client.transmit(it.now + 1)
    receiver._held = 0
    it.world.client.send("x", it.now)
    receiver.sack_at = it.now
    ((opened, _),) = it.world.client.transmit(it.now)
    assert len(closed) == datachannel.SACK_ALONE < len(opened)
    it.bring(closed)
    it.bring(opened)
    assert it.server._association is not None
    assert it.server._association._sender._peer_window == WINDOW


def test_an_end_that_could_wait_to_be_read_is_one() -> None:
    it = Acknowledged()
    it.exchange()
    client = it.world.client._association
    assert client is not None and it.world.client._dtls is not None
    end = it.world.client._dtls.seal(
        client._header.packet(sctp_chunks.chunk(sctp_chunks.ABORT, b"\0\x0c\0\x0cfarewell"))
    )
    assert len(end) == datachannel.SACK_ALONE and not it.bring(end)
    assert it.server.catch_up()
    assert [type(event) for event in it.server.take_events()] == [Closed] and it.server.state == "closed"
    assert not it.server.catch_up() and not it.bring(end)


def test_nothing_leaves_at_once_before_the_channel_is_open() -> None:
    assert World().server.send_at_once(batch_of("early"), 0.0) is None


def test_a_batch_is_its_messages_and_says_how_many_will_leave() -> None:
    world = connected(client_options=Options(THEIRS, max_message=2000))
    batch = batch_of("one", b"two", "", "x" * 1500)
    assert world.server.push_all(batch, world.now) == 4
    assert world.server.push_all(batch_of("three", "x" * 2001), world.now) == 1
    assert world.server.counters.shed == 1
    world.run(0.3)
    assert messages(world.events["client"]) == ["one", b"two", "", "x" * 1500, "three"]
    world.loss = 1.0
    total = sum(world.server.push_all(batch, world.now) for _ in range(300))
    assert total == 1200 - (world.server.counters.shed - 1) < 700


def test_nothing_is_sent_before_the_channel_is_open() -> None:
    world = World()
    assert not world.server.send("early", 0.0)
    assert not world.server.push_all(batch_of("early"), 0.0)
    world.run(10 * DELAY + 0.001)  # the server has asked for the channel, and has no answer
    assert not world.server.send("early", world.now)
    assert not world.server.push_all(batch_of("early"), world.now)
    assert world.server.counters.shed == 0


def test_the_first_messages_of_a_client_open_the_channel_even_if_its_acknowledgement_does_not_come() -> None:
    world = World()
    real = sctp.Association.send

    def mute(
        association: sctp.Association, stream: int, ppid: int, payload: bytes, *more: object, **words: object
    ) -> bool:
        return ppid == DCEP or real(association, stream, ppid, payload, *more, **words)  # type: ignore[arg-type]

    world.run(9 * DELAY + 0.001)
    sctp.Association.send = mute  # type: ignore[method-assign, assignment]
    try:
        world.run(DELAY)
    finally:
        sctp.Association.send = real  # type: ignore[method-assign]
    assert world.events["client"] == [OPENED]
    assert world.client.send("first", world.now) and world.client.send("second", world.now)
    world.run(0.2)
    assert world.events["server"] == [OPENED, Message("first", 1), Message("second", 1)]


def open_from_client(world: World, stream: int, channel: Channel, payload: bytes | None = None) -> None:
    association = world.client._association
    assert association is not None
    world.client._channels[stream] = channel
    channel.open = True
    payload = channel.encode() if payload is None else payload
    association.send(stream, DCEP, payload)


def test_a_client_may_open_channels_of_its_own() -> None:
    world = connected()
    open_from_client(world, 4, Channel("chat", "p", ordered=True, max_retransmits=None))
    assert world.client.send("hello", world.now, stream=4)
    world.run(0.2)
    assert world.events["server"] == [Opened(4, "chat", "p"), Message("hello", 4)]
    assert world.server.send(b"back", world.now, stream=4)
    assert not world.server.send(b"nowhere", world.now, stream=6)
    world.run(0.2)
    assert world.events["client"] == [Message(b"back", 4)]
    world.talk()


@pytest.mark.parametrize(
    "channel",
    [
        Channel("a"),
        Channel("", "", True, None),
        Channel("ä" * 50, "p" * 900, False, None),
        Channel("geckos.io", "", True, 7),
    ],
)
def test_an_open_message_is_read_as_it_was_written(channel: Channel) -> None:
    assert Channel.decode(channel.encode()) == replace(channel, open=True)


def test_the_servers_open_message_is_what_geckos_clients_need() -> None:
    assert Channel("geckos.io").encode().hex() == "0381" + "0100" + "00000000" + "0009" + "0000" + b"geckos.io".hex()


BAD_OPENS = (
    b"\3",
    Channel("a").encode()[:-1],
    Channel("a").encode() + b"x",
    b"\3\x03" + Channel("a").encode()[2:],
    b"\3\x84" + Channel("a").encode()[2:],
    Channel("x" * 1025).encode(),
    Channel("ab").encode()[:-2] + b"\xff\xfe",
    b"\1",
    b"",
)


def test_broken_messages_are_counted_and_change_nothing() -> None:
    world = connected()
    for payload in BAD_OPENS:
        world.server._receive_message(2, DCEP, payload, world.now)
    world.server._receive_message(3, DCEP, Channel("ours").encode(), world.now)  # odd is the server's to open
    world.server._receive_message(1, DCEP, Channel("again").encode(), world.now)
    world.server._receive_message(8, 51, b"no such channel", world.now)
    world.server._receive_message(1, 51, b"\xff\xfe", world.now)
    world.server._receive_message(1, 99, b"?", world.now)
    assert world.server.counters.bad_message == len(BAD_OPENS) + 5
    assert world.server.take_events() == []
    world.talk()


def test_a_client_opens_no_more_channels_than_it_may() -> None:
    world = connected()
    for stream in range(2, 100, 2):
        world.server._receive_message(stream, DCEP, Channel("x").encode(), world.now)
    assert len(world.server.take_events()) == MAX_CHANNELS - 1
    assert world.server.counters.bad_message == 49 - (MAX_CHANNELS - 1)


# STUN


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (check(), None),
        (check(nominate=False), None),
        (check("wrongwrongwrongwrongwr"), 401),
        (check(ufrag="someone"), 401),
        (stun.build(stun.REQUEST, bytes(12), [(stun.USERNAME, f"{LOCAL.ufrag}:them".encode())]), 400),
        (stun.build(stun.REQUEST, bytes(12), [(stun.PRIORITY, b"\0\0\0\1")], LOCAL.password), 400),
    ],
)
def test_a_check_is_answered_with_no_more_bytes_than_it_had(request_: bytes, code: int | None) -> None:
    world = World()
    world.server.receive(request_, VICTIM, 0.0)
    ((answer, address),) = world.server.transmit(0.0)
    assert address == VICTIM and len(answer) <= len(request_)
    message = stun.parse(answer)
    assert message.error == code and message.kind == (stun.SUCCESS if code is None else stun.ERROR)
    assert (message.mapped_address == VICTIM) == (code is None)
    assert (VICTIM in world.server.addresses) == (code is None)


def test_not_even_a_proven_check_is_answered_with_more_bytes_than_it_had() -> None:
    world = World()
    short = stun.build(stun.REQUEST, bytes(12), [(stun.USERNAME, f"{LOCAL.ufrag}:x".encode())], LOCAL.password)
    world.server.receive(short[:-8][:2] + (len(short) - 28).to_bytes(2, "big") + short[4:-8], ("2001:db8::9", 1), 0.0)
    assert world.server.addresses == (("2001:db8::9", 1),) and world.server.transmit(0.0) == []


@pytest.mark.parametrize(("attribute", "code"), [(stun.ICE_CONTROLLED, 487), (0x7F00, 420)])
def test_a_proven_check_that_cannot_be_served_is_refused(attribute: int, code: int) -> None:
    world = World()
    attributes = [(stun.USERNAME, f"{LOCAL.ufrag}:them".encode()), (attribute, bytes(8))]
    request = stun.build(stun.REQUEST, bytes(12), attributes, LOCAL.password)
    world.server.receive(request, CLIENT, 0.0)
    ((answer, _),) = world.server.transmit(0.0)
    message = stun.parse(answer)
    assert message.error == code and message.is_from(LOCAL.password) and len(answer) <= len(request)
    assert world.server.addresses == ()


def test_other_stun_is_passed_over() -> None:
    world = World()
    for data in (
        stun.build(stun.INDICATION, bytes(12), []),
        stun.build(stun.SUCCESS, bytes(12), [], LOCAL.password),
        stun.build(0x0003, bytes(12), [], LOCAL.password),  # TURN: Allocate
        stun.build(stun.REQUEST, bytes(12), []),  # any answer would be longer
        b"\0",
        b"\xb5native",
        b"",
    ):
        world.server.receive(data, CLIENT, 0.0)
    assert world.server.transmit(0.0) == []
    assert (world.server.counters.bad_stun, world.server.counters.stray) == (2, 2)


def test_a_client_believes_only_answers_to_its_questions() -> None:
    world = World()
    world.client.run(0.0)
    ((question, _),) = world.client.transmit(0.0)
    asked = stun.parse(question)
    assert stun.USE_CANDIDATE not in asked.attributes
    good = stun.success(asked, CLIENT, LOCAL.password)
    bad = (
        (stun.success(asked, CLIENT, "another password 1234567"), SERVER),
        (good, VICTIM),  # not from where the question went
        (stun.build(stun.SUCCESS, bytes(12), [], LOCAL.password), SERVER),
        (stun.build(stun.ERROR, asked.transaction, [], LOCAL.password), SERVER),
        (check(), SERVER),
    )
    for data, address in bad:
        world.client.receive(data, address, 0.0)
        assert world.client.transmit(0.0) == []
    world.client.receive(good, SERVER, 0.0)
    nomination, hello = (datagram for datagram, _ in world.client.transmit(0.0))
    assert stun.USE_CANDIDATE in stun.parse(nomination).attributes
    assert hello[0] == 22
    world.client.receive(good, SERVER, 0.0)  # once
    assert world.client.counters.bad_stun == len(bad) + 1


def test_of_many_candidates_one_that_answers_is_taken() -> None:
    world = World()
    addresses = [("192.0.2.200", 1), ("2001:db8::9", 2), SERVER[:2], ("192.0.2.201", 3)]
    offer = sdp.write_offer(1, LOCAL, OURS.fingerprint, addresses, 65536)
    world.client, answer = Peer.join(Options(THEIRS), offer, world.random.randbytes, 0.0)
    world.server = Peer.serve(Options(OURS), LOCAL, sdp.parse_answer(answer), world.random.randbytes, 0.0)
    world.peers = {"server": world.server, "client": world.client}
    world.run(1.0)
    assert world.client.address == SERVER
    asked = [(target, datagram) for name, target, datagram in world.sent if name == "client" and datagram[0] < 4]
    assert [target for target, _ in asked[:3]] == addresses[:3]
    world.talk()


# Addresses that are not the peer's


def test_before_the_handshake_is_over_an_address_gets_at_most_three_times_its_bytes() -> None:
    for seed in range(20):
        world = World(seed, loss=0.3)
        for _ in range(300):
            world.run(0.02)
            if world.server._is_connected:
                break
            for received, sent in world.before_proof.values():
                assert sent <= AMPLIFICATION * received


@pytest.mark.parametrize("hello", [False, True])
def test_who_lies_about_its_address_makes_us_send_little_to_a_victim(hello: bool) -> None:
    world = World()
    world.run(2 * DELAY + 0.001)  # the client has got an answer, and has begun
    flights = [datagram for name, _, datagram in world.sent if name == "client"]
    first_hello = next(datagram for datagram in flights if datagram[0] == 22)
    liar = World()
    liar.at["client"] = ("0.0.0.0", 0)  # it never answers
    liar.peers = {"server": liar.server}
    liar.deliver("server", VICTIM, check())
    for number in range(40):
        if hello:
            liar.deliver("server", VICTIM, first_hello if number < 3 else first_hello[:30])
        liar.run(0.5)
        received, sent = liar.before_proof[VICTIM]
        assert sent <= (AMPLIFICATION if hello else 1) * received
    assert liar.events["server"] == [Closed("no channel was open after 15 s")]


def test_a_client_whose_address_changes_is_followed_after_it_has_shown_that_it_hears_us() -> None:
    world = connected()
    world.at["client"] = MOVED  # as a NAT does; the client does not know
    for _ in range(100):
        world.server.send("move", world.now)
        world.run(0.1)
        if MOVED in world.server.addresses:
            break
    world.run(0.5)
    assert world.server.address == at_once(world) == MOVED and world.server.counters.moves == 1
    to_it = world.to(MOVED)
    assert stun.parse(to_it[0]).kind == stun.SUCCESS
    assert len(to_it[1]) < 120  # the nonce
    world.events["client"].clear()
    world.talk()
    received, sent = world.before_proof[MOVED]
    assert sent < 2000
    world.at["client"] = CLIENT
    world.deliver("server", CLIENT, check())  # it is back, where it was proven
    assert at_once(world) == CLIENT


def test_before_the_nonce_returns_a_new_address_gets_nothing_else() -> None:
    world = connected()
    real = world.deliver

    def deliver(name: str, source: Address, datagram: bytes) -> None:
        if name == "client" and source == SERVER and world.at["client"] == MOVED and datagram[0] > 19:
            return  # the nonce does not arrive
        real(name, source, datagram)

    world.deliver = deliver  # type: ignore[method-assign]
    world.at["client"] = MOVED
    for _ in range(80):
        world.server.send("x" * 100, world.now)
        world.run(0.1)
        assert world.server.address == CLIENT
        if MOVED in world.before_proof:
            received, sent = world.before_proof[MOVED]
            assert sent <= AMPLIFICATION * received
    to_it = [datagram for datagram in world.to(MOVED) if datagram[0] > 19]
    assert 2 <= len(to_it) <= 2 * PROBES and max(map(len, to_it)) < 120
    assert len(world.to(CLIENT)) > 20  # as far as congestion control lets it, with nobody to acknowledge


def test_a_client_cannot_aim_the_stream_at_a_victim() -> None:
    world = connected()
    for _ in range(40):
        world.deliver("server", VICTIM, check())  # it knows the password, and forges the address
        world.server.send("x" * 1000, world.now)
        world.run(0.1)
    received, sent = world.before_proof[VICTIM]
    assert sent <= AMPLIFICATION * received
    assert max(map(len, world.to(VICTIM))) < 120
    assert world.server.address == CLIENT
    world.events["client"].clear()
    world.talk()


def test_a_nonce_that_went_to_one_address_proves_no_other() -> None:
    world = connected()
    world.at["client"] = MOVED
    while MOVED not in world.server.addresses:
        world.run(0.01)
    world.step("server")  # the nonce is under way to MOVED
    world.deliver("server", VICTIM, check())
    world.run(0.3)
    assert world.server.address != VICTIM


def test_a_handshake_that_ends_elsewhere_than_it_began_proves_no_address() -> None:
    world = World()
    real = world.deliver

    def deliver(name: str, source: Address, datagram: bytes) -> None:
        if name == "server" and datagram[0] == 22 and len(datagram) > 300:  # the client's last flight
            real(name, VICTIM, check())
            source = VICTIM
        real(name, source, datagram)

    world.deliver = deliver  # type: ignore[method-assign]
    for _ in range(100):
        world.run(0.05)
        received, sent = world.before_proof.get(VICTIM, (0, 0))
        assert sent <= AMPLIFICATION * received
    assert world.server._paths.by_address[VICTIM].proven is False


def test_datagrams_from_an_address_without_a_check_are_not_read() -> None:
    world = connected()
    world.client.send("hello", world.now)
    for datagram, _ in world.client.transmit(world.now):
        world.deliver("server", VICTIM, datagram)
    assert world.server.take_events() == []
    assert world.server.counters.stray == 1


def test_a_peer_has_a_bounded_number_of_addresses() -> None:
    world = connected()
    for port in range(1, 50):
        world.deliver("server", (VICTIM[0], port), check(nominate=bool(port % 2)))
    assert len(world.server.addresses) == MAX_PATHS
    assert CLIENT in world.server.addresses
    world.run(0.1)
    world.talk()


# The end


@pytest.mark.timeout(120)  # seconds, for a busy machine; it takes 2
def test_a_thousand_peers_that_come_and_go_leave_nothing_behind() -> None:
    def live(count: int) -> int:
        for seed in range(count):
            world = World(seed).run(12 * DELAY)
            assert world.server.state == "open"
            world.peers["client" if seed % 2 else "server"].close(world.now)
            world.run(2 * DELAY)
            assert world.server.state == world.client.state == "closed"
        del world
        gc.collect()
        return len(gc.get_objects())

    live(10)
    before = live(10)
    assert live(1000) - before < 50


def test_a_close_is_told_and_said_once() -> None:
    for name, other in (("server", "client"), ("client", "server")):
        world = connected()
        world.peers[name].close(world.now)
        world.peers[name].close(world.now)
        world.run(0.5)
        assert world.events[name] == [Closed("closed by us")]
        assert len(world.events[other]) == 1 and isinstance(world.events[other][0], Closed)
        assert world.peers[other].transmit(world.now) == []
        assert not world.peers[name].send("late", world.now)
        assert not world.peers[name].push_all(batch_of("late"), world.now)


def test_a_peer_that_ends_in_the_datagram_of_its_last_message_is_heard_and_gone() -> None:
    world = connected()
    assert world.client.send("farewell", world.now) and world.client._dtls is not None
    ((last, _),) = world.client.transmit(world.now)
    world.client._dtls.close()
    (end,) = world.client._dtls.take_datagrams()
    assert world.server.receive(last + end, CLIENT, world.now)
    world.server.transmit(world.now + 1)  # its acknowledgement would be due
    assert world.server.take_events() == [Message("farewell", 1), Closed("closed by the peer")]


def test_a_peer_that_falls_silent_is_gone_after_half_a_minute() -> None:
    world = connected()
    world.loss = 1.0
    world.run(28.0)
    world.run(4.0)
    for name in ("server", "client"):
        assert [type(event) for event in world.events[name]] == [Closed]


def test_questions_for_consent_keep_an_idle_peer() -> None:
    world = connected()
    world.run(120.0)
    assert world.events == {"server": [], "client": []}
    questions = [datagram for name, _, datagram in world.sent if name == "client" and datagram[0] < 4]
    assert 20 <= len(questions) <= 32  # every 4 to 6 s
    world.talk()


def test_a_channel_reset_by_the_peer_is_closed_and_the_servers_own_ends_the_peer() -> None:
    world = connected()
    open_from_client(world, 4, Channel("chat"))
    world.run(0.2)
    world.events["server"].clear()
    association = world.client._association
    assert association is not None
    association.reset_stream(4, world.now)
    world.run(0.5)
    assert world.events["server"] == [ChannelClosed(4)]
    world.talk()
    world.events["server"].clear()
    association.reset_stream(1, world.now)
    world.run(0.5)
    assert world.events["server"] == [Closed("channel closed by the peer")]


def test_a_peer_whose_sctp_begins_anew_is_offered_the_channel_again() -> None:
    world = connected()
    open_from_client(world, 4, Channel("chat"))
    world.run(0.2)
    world.events["server"].clear()
    world.client._channels.clear()
    world.client._main = None
    world.client._association = sctp.Association(random=world.random.randbytes)
    world.client._association.connect(world.now)
    world.run(0.02)
    world.server.send("nobody hears this", world.now)
    while not world.events["server"]:
        world.run(0.01)
    assert at_once(world) is None
    world.run(0.5)
    assert at_once(world) == CLIENT
    assert world.events["server"] == [ChannelClosed(4), OPENED]
    assert world.events["client"][-1] == OPENED
    assert world.server.push_all(batch_of("pushed"), world.now) == 1
    world.run(0.1)
    assert world.events["client"][-1] == Message("pushed", 1)
    world.talk()


# Bad input


def test_bent_datagrams_leave_a_peer_and_its_neighbour_untouched() -> None:
    world, neighbour = connected(), connected(seed=1)
    world.talk()
    world.run(20.0)
    random = Random(8831)
    seen = [(name, datagram) for name, _, datagram in world.sent]
    for _ in range(6000):
        name, datagram = random.choice(seen)
        data = bytearray(datagram)
        for _ in range(random.randrange(1, 6)):
            data[random.randrange(len(data))] = random.randrange(256)
        if random.random() < 0.3:
            del data[random.randrange(len(data)) :]
        bent = bytes(data)
        if bent == datagram:
            continue
        for to, source in (("server", CLIENT), ("client", SERVER), ("server", VICTIM)):
            world.deliver(to, source, bent)
            world.step(to)
    assert world.events == {"server": [], "client": []} or all(
        isinstance(event, Message) for events in world.events.values() for event in events
    )
    assert world.server.address != VICTIM  # a replay can show an address, but not prove it
    world.run(0.1)
    world.talk()
    neighbour.talk()


def test_whatever_a_peer_seals_ends_at_most_itself() -> None:
    random, neighbour, ended = Random(4960), connected(seed=1), 0
    world = connected()
    for data in ("x" * 3000, b"short", ""):
        world.client.send(data, world.now)
    open_from_client(world, 4, Channel("chat"))
    association = world.client._association
    assert association is not None
    association.reset_stream(6, world.now)
    seen = [packet[12:] for packet in association.transmit(world.now)]
    for number in range(4000):
        client, server = world.client, world.server
        assert client._dtls is not None and server._association is not None
        content = bent(random, seen)
        tag = 0 if content[0] == sctp_chunks.INIT else server._association._tag
        world.deliver("server", CLIENT, client._dtls.seal(sctp_chunks.Header(tag).packet(content)))
        world.step("server")
        if server.state == "closed":
            ended += 1
            assert isinstance(world.events["server"][-1], Closed)
            world = connected(seed=number)
    assert 0 < ended < 400  # by chance it was an ABORT, or a reset of the channel
    neighbour.talk()


def test_a_half_open_peer_survives_garbage_and_still_connects() -> None:
    random = Random(30)
    for seed in range(10):
        world = World(seed)
        for _ in range(8):
            world.run(0.015)
            for _ in range(30):
                data = bytes((random.choice((0, 1, 20, 23, 64, 200)),)) + random.randbytes(random.randrange(80))
                world.deliver("server", random.choice((CLIENT, VICTIM)), data)
                world.deliver("client", random.choice((SERVER, VICTIM)), data)
        world.run(1.0)
        assert OPENED in world.events["server"] and OPENED in world.events["client"], seed


# A peer that others have written


def test_a_peer_of_libdatachannel_connects_and_hears_what_it_said() -> None:
    package = Path(__file__).parents[2] / "bench" / "peers" / "node_modules" / "node-datachannel"
    node = shutil.which("node")
    if node is None or not package.is_dir():
        pytest.skip("no node, or no node-datachannel in bench/peers/node_modules: npm install there")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        offer = sdp.write_offer(1, LOCAL, OURS.fingerprint, [udp.getsockname()], 65536)
        script = Path(__file__).parent / "oracle" / "peer.mjs"
        with subprocess.Popen(
            [node, script, package], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(offer.encode())
            process.stdin.close()
            try:
                lines, events = echo(udp, process.stdout)
            finally:
                process.kill()
            lines += [json.loads(line) for line in process.stdout.readlines()]
    sizes = [["text", 7], ["binary", 3], ["text", 0], ["binary", 0], ["text", 5000], ["binary", 65536], ["text", 3]]
    assert lines[1] == {"open": ["geckos.io", 1]}
    assert sorted(line["heard"] for line in lines if "heard" in line) == sorted(sizes)
    assert events[0] == OPENED and isinstance(events[-1], Closed)
    assert Message("hello ä", 1) in events and Message(bytes(65536), 1) in events


def echo(udp: socket.socket, said: IO[bytes]) -> tuple[list[Any], list[Event]]:
    """Serves one peer, which hears what it says, until it is closed."""
    lines: list[Any] = []
    events: list[Event] = []
    unsaid: list[str | bytes] = []
    peer: Peer | None = None
    early: list[tuple[bytes, Address]] = []  # checks that came before the answer
    selector = selectors.DefaultSelector()
    selector.register(udp, selectors.EVENT_READ)
    selector.register(said, selectors.EVENT_READ)
    until = time.monotonic() + 10
    with selector:
        while time.monotonic() < until and not (events and isinstance(events[-1], Closed)):
            ready = [key.fileobj for key, _ in selector.select(0.05)]
            now = time.monotonic()
            if said in ready:
                line = said.readline()
                if not line:
                    selector.unregister(said)
                    continue
                lines.append(json.loads(line))
                if "answer" in lines[-1]:
                    peer = Peer.serve(Options(OURS), LOCAL, sdp.parse_answer(lines[-1]["answer"]), urandom, now)
                    for datagram, address in early:
                        peer.receive(datagram, address, now)
            if udp in ready:
                datagram, address = udp.recvfrom(2048)
                if peer is None:
                    early.append((datagram, address))
                else:
                    peer.receive(datagram, address, now)
            if peer is not None:
                peer.run(now)
                new = peer.take_events()
                events += new
                unsaid += messages(new)
                while unsaid and peer.send(unsaid[0], now):  # a long one is refused while another waits
                    del unsaid[0]
                for datagram, address in peer.transmit(now):
                    udp.sendto(datagram, address)
    return lines, events
