"""DTLS: two sides joined in memory, in virtual time. OpenSSL, kept for all records, is the oracle of our own."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import pytest

from session_server.rtc.dtls import EARLY, HEADER, MTU, WINDOW, Certificate, Dtls, DtlsError, expand

OURS, THEIRS = Certificate.new(), Certificate.new()
DELAY = 0.02  # seconds one way

Lost = Callable[[int, bytes], bool]  # the how manyth datagram of both sides, from 0, and its bytes


def nothing(number: int, datagram: bytes) -> bool:
    return False


class Wire:
    """A server and a client, and what is under way between them."""

    def __init__(self, lost: Lost = nothing, own: tuple[bool, bool] = (True, True)) -> None:
        self.server = Dtls(OURS, THEIRS.fingerprint, client=False, own_records=own[0])
        self.client = Dtls(THEIRS, OURS.fingerprint, client=True, own_records=own[1])
        self.lost = lost
        self.now = 0.0
        self.count = 0
        self.sent: list[tuple[Dtls, bytes]] = []  # all that was sent: by whom, what
        self.got: dict[Dtls, list[bytes]] = {self.server: [], self.client: []}
        self._under_way: list[tuple[float, int, Dtls, bytes]] = []

    def run(self, until: float) -> None:
        """Lets time pass."""
        while True:
            self._send()
            deadlines = [side.next_deadline for side in (self.server, self.client) if side.next_deadline is not None]
            deadlines += [self._under_way[0][0]] if self._under_way else []
            if not deadlines or min(deadlines) > until:
                self.now = until
                return
            self.now = max(self.now, min(deadlines))
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, to, datagram = heappop(self._under_way)
                self.got[to] += to.receive(datagram, self.now)
            for side in (self.server, self.client):
                side.run(self.now)

    def _send(self) -> None:
        for side, other in ((self.server, self.client), (self.client, self.server)):
            for datagram in side.take_datagrams():
                self.sent.append((side, datagram))
                if not self.lost(self.count, datagram):
                    heappush(self._under_way, (self.now + DELAY, self.count, other, datagram))
                self.count += 1

    def connect(self, until: float = 30.0) -> Wire:
        self.client.start(self.now)
        self.run(until)
        return self

    @property
    def states(self) -> tuple[str, str]:
        return self.server.state, self.client.state

    def talk(self) -> None:
        """Both say something and hear it."""
        for side, other in ((self.server, self.client), (self.client, self.server)):
            side.send(b"hello")
            self.run(self.now + 1)
            assert self.got[other].pop() == b"hello"


@pytest.mark.parametrize("own", [(True, True), (True, False), (False, True), (False, False)])
def test_both_roles_connect_and_each_opens_what_the_other_sealed(own: tuple[bool, bool]) -> None:
    wire = Wire(own=own).connect(until=0.2)
    assert wire.states == ("connected", "connected")
    sizes = [1, 15, 16, 17, 100, 1180]
    for size in sizes * 5:
        wire.server.send(b"s" * size)
        wire.client.send(b"c" * size)
    wire.run(0.4)
    assert wire.got[wire.client] == [b"s" * size for size in sizes * 5]
    assert wire.got[wire.server] == [b"c" * size for size in sizes * 5]
    wire.client.close()
    wire.run(0.6)
    assert wire.states == ("closed", "closed")
    assert wire.server.reason == "closed by the peer"


def test_no_datagram_is_longer_than_the_mtu_and_records_are_whole() -> None:
    wire = Wire().connect()
    assert len(wire.sent) == 4  # a flight of the handshake in one datagram each
    for _, datagram in wire.sent:
        assert len(datagram) <= MTU
        at = 0
        while at < len(datagram):
            at += HEADER + int.from_bytes(datagram[at + 11 : at + 13], "big")
        assert at == len(datagram)


def test_openssl_is_given_back_after_the_handshake() -> None:
    wire = Wire().connect()
    assert wire.server._connection is None and wire.client._connection is None


@pytest.mark.parametrize("number", range(4))
def test_any_lost_flight_is_repeated_in_time(number: int) -> None:
    wire = Wire(lost=lambda count, _: count == number).connect(until=1.0)
    assert wire.states == ("connected", "connected")
    wire.talk()


def test_a_repeated_flight_is_answered_again_at_once() -> None:
    """Browsers repeat theirs after 50 ms; our own timer would be five times slower."""
    wire = Wire(lost=lambda count, _: count == 1)  # the server's first flight
    wire.client.start(0.0)
    wire.run(0.05)
    (hello,) = [datagram for side, datagram in wire.sent if side is wire.client]
    wire.server.receive(hello, 0.05)
    wire.server.receive(hello, 0.06)  # not for every copy
    wire.run(0.20)
    assert wire.states == ("connected", "connected")
    assert len([1 for side, _ in wire.sent if side is wire.server]) == 3


def test_the_last_flight_is_repeated_for_a_client_that_did_not_get_it() -> None:
    dropped = []

    def lost(count: int, datagram: bytes) -> bool:
        if count in (3, 5):  # the server's last, and its first repetition
            dropped.append(datagram)
            return True
        return False

    wire = Wire(lost=lost).connect(until=1.5)
    assert dropped[0][0] == 20 and len(dropped) == 2  # ChangeCipherSpec, then Finished
    assert wire.states == ("connected", "connected")
    wire.talk()
    assert wire.server.replayed == wire.server.forged == 0  # the repeated Finished has a number of its own


def test_the_client_hears_a_server_that_spoke_before_the_repetition() -> None:
    """Our numbers go on from those of the handshake, so a repeated last flight is never too old (trap: it once was)."""
    wire = Wire(lost=lambda count, _: count == 3)
    wire.client.start(0.0)
    wire.run(0.1)
    assert wire.states == ("connected", "handshaking")
    for number in range(EARLY + WINDOW):
        wire.server.send(b"%d" % number)
    wire.run(1.0)
    assert wire.states == ("connected", "connected")
    assert wire.got[wire.client] == [b"%d" % number for number in range(EARLY)]
    wire.talk()


@pytest.mark.parametrize("own", [(True, True), (True, False)])
def test_with_a_third_of_all_datagrams_lost_both_connect(own: tuple[bool, bool]) -> None:
    slow = 0
    for seed in range(40):
        random = Random(seed)
        wire = Wire(lost=lambda *_, random=random: random.random() < 0.3, own=(own[0], True)).connect(until=12)
        slow += wire.states != ("connected", "connected")
    assert slow <= 1


def test_reordered_and_doubled_datagrams_do_no_harm() -> None:
    for seed in range(20):
        random = Random(seed)
        wire = Wire()
        send = wire._send

        def shuffle(wire: Wire = wire, random: Random = random, send: Callable[[], None] = send) -> None:
            send()
            wire._under_way += [entry for entry in wire._under_way if random.random() < 0.3]
            wire._under_way = sorted(
                (when + random.random() * 0.1, number, to, datagram) for when, number, to, datagram in wire._under_way
            )[:20]

        wire._send = shuffle  # type: ignore[method-assign]
        wire.connect(until=5)
        assert wire.states == ("connected", "connected"), seed


def test_without_any_answer_it_gives_up() -> None:
    wire = Wire(lost=lambda *_: True).connect(until=60)
    assert wire.states == ("new", "failed")
    assert "no answer to 17 sendings" in wire.client.reason
    assert len(wire.sent) == 17


@pytest.mark.parametrize("liar", ["server", "client"])
def test_another_certificate_than_announced_fails_before_anything_protected_leaves(liar: str) -> None:
    wire = Wire()
    mallory = Certificate.new()
    if liar == "client":
        wire.client = Dtls(mallory, OURS.fingerprint, client=True)
        honest = wire.server
    else:
        wire.server = Dtls(mallory, THEIRS.fingerprint, client=False)
        honest = wire.client
    wire.got = {wire.server: [], wire.client: []}
    wire.connect(until=1.0)
    assert wire.states == ("failed", "failed")
    assert "certificate with fingerprint" in honest.reason and "expected" in honest.reason
    sent = [datagram for side, datagram in wire.sent if side is honest]
    assert all(record[4] == 0 for record in sent)  # epoch 0 only
    assert sent[-1][:3] == b"\x15\xfe\xfd" and sent[-1][HEADER:] == b"\x02\x2a"  # fatal, bad_certificate
    with pytest.raises(DtlsError, match="send in state 'failed', expected 'connected'"):
        honest.send(b"x")


def sealed(wire: Wire, *contents: bytes) -> list[bytes]:
    """What the server would send."""
    for content in contents:
        wire.server.send(content)
    return wire.server.take_datagrams()


def test_a_replayed_record_is_read_once() -> None:
    wire = Wire().connect()
    first, second, third = sealed(wire, b"1", b"2", b"3")
    client = wire.client
    assert [client.receive(one, 0.0) for one in (first, third, first, second, third, second)] == [
        [b"1"], [b"3"], [], [b"2"], [], [],
    ]  # fmt: skip
    assert (client.replayed, client.forged) == (3, 0)


def test_what_is_older_than_the_window_is_not_read() -> None:
    wire = Wire().connect()
    records = sealed(wire, *[b"%d" % number for number in range(WINDOW + 1)])
    assert wire.client.receive(records[-1], 0.0) == [b"%d" % WINDOW]
    assert wire.client.receive(records[0], 0.0) == []  # WINDOW behind the newest
    assert wire.client.receive(records[1], 0.0) == [b"1"]
    assert wire.client.replayed == 1


def test_a_forged_number_does_not_move_the_window() -> None:
    wire = Wire().connect()
    (record,) = sealed(wire, b"real")
    forged = record[:5] + b"\xff\xff\xff\xff\xff\xff" + record[11:]
    assert wire.client.receive(forged, 0.0) == []
    assert wire.client.receive(record, 0.0) == [b"real"]
    assert (wire.client.forged, wire.client.replayed) == (1, 0)


def test_a_number_far_ahead_is_taken_and_costs_no_memory() -> None:
    wire = Wire().connect()
    assert wire.server._records is not None
    wire.server._records._sequence = (2 << 48) - 1  # the last of epoch 1
    (record,) = sealed(wire, b"far")
    assert wire.client.receive(record, 0.0) == [b"far"]
    assert wire.client._records is not None and wire.client._records._bits == 1


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    wire = Wire().connect()
    (record,) = sealed(wire, b"hello")
    for at in range(len(record)):
        for bit in range(8):
            bent = bytearray(record)
            bent[at] ^= 1 << bit
            assert wire.client.receive(bytes(bent), 0.0) == [], (at, bit)
    assert wire.client.receive(record, 0.0) == [b"hello"]
    assert wire.states == ("connected", "connected")


@pytest.mark.parametrize("epoch", [0, 2, 3, 255, 256, 257, 65535])
def test_other_epochs_are_not_read(epoch: int) -> None:
    wire = Wire().connect()
    (record,) = sealed(wire, b"hello")
    moved = record[:3] + epoch.to_bytes(2, "big") + record[5:]
    for type in (20, 21, 22, 23):
        assert wire.client.receive(bytes((type,)) + moved[1:], 0.0) == []
    plain = b"\x15\xfe\xfd" + epoch.to_bytes(2, "big") + bytes(6) + b"\0\2\1\0"  # a close_notify that anybody can write
    wire.client.receive(plain, 0.0)
    assert wire.client.state == "connected"
    assert wire.client.receive(record, 0.0) == [b"hello"]


def test_later_epochs_never_reach_openssl_in_the_handshake() -> None:
    wire = Wire()
    wire.client.start(0.0)
    (hello,) = wire.client.take_datagrams()
    assert wire.server.receive(hello[:3] + b"\0\2" + hello[5:], 0.0) == []
    assert (wire.server.state, wire.server.malformed) == ("new", 1)


def test_data_that_overtakes_the_end_of_the_handshake_is_read_after_it_once() -> None:
    wire = Wire(lost=lambda count, _: count == 2)  # the client's last flight
    wire.client.start(0.0)
    wire.run(0.1)
    held = next(datagram for side, datagram in reversed(wire.sent) if side is wire.client)
    # A client that false-starts, made by hand: its keys are known to it already.
    assert wire.client._records is not None
    early = wire.client._records.seal(b"early")
    for _ in range(EARLY * 3):
        assert wire.server.receive(early, wire.now) == []
    assert wire.server.receive(held, wire.now) == [b"early"]
    assert wire.server.state == "connected"
    assert wire.server.replayed == EARLY - 1


def test_several_records_in_one_datagram_are_all_read() -> None:
    wire = Wire().connect()
    records = sealed(wire, b"1", b"2", b"3")
    assert wire.client.receive(b"".join(records) + b"\x17\xfe", 0.0) == [b"1", b"2", b"3"]
    assert wire.client.malformed == 1  # the rest


def test_a_fatal_alert_of_the_peer_ends_the_connection() -> None:
    wire = Wire().connect()
    wire.server._emit([(21, 1, b"\1\x64"), (21, 1, b"\2\x28")])  # a warning, which is ignored, then a fatal one
    wire.run(wire.now + 1)
    assert (wire.client.state, wire.client.reason) == ("failed", "the peer sent alert 28")


def test_a_close_is_answered_and_nothing_is_read_after_it() -> None:
    wire = Wire().connect()
    (record,) = sealed(wire, b"late")
    wire.server.close()
    wire.run(wire.now + 1)
    assert wire.states == ("closed", "closed")
    assert wire.client.receive(record, wire.now) == []
    wire.client.close()
    assert wire.client.take_datagrams() == []


def mutated(random: Random, datagram: bytes) -> bytes:
    data = bytearray(datagram)
    for _ in range(random.randrange(1, 8)):
        data[random.randrange(len(data))] = random.randrange(256)
    if random.random() < 0.3:
        del data[random.randrange(len(data)) :]
    return bytes(data)


@pytest.mark.parametrize("own", [True, False])
def test_a_connected_peer_is_untouched_by_bent_datagrams(own: bool) -> None:
    wire = Wire(own=(own, own)).connect()
    random = Random(6347)
    seen = [datagram for _, datagram in wire.sent] + sealed(wire, b"x" * 100, b"y")
    for _ in range(3000):
        data = mutated(random, random.choice(seen)) if random.random() < 0.8 else random.randbytes(random.randrange(99))
        for side in (wire.server, wire.client):
            assert data in seen or side.receive(data, wire.now) == []
    assert wire.states == ("connected", "connected")
    wire.talk()


def test_bent_datagrams_in_the_handshake_raise_nothing() -> None:
    random = Random(9147)
    flights = [datagram for _, datagram in Wire().connect().sent]
    for _ in range(300):
        wire = Wire()
        wire.client.start(0.0)
        wire.client.take_datagrams()
        for _ in range(5):
            for side in (wire.server, wire.client):
                assert side.receive(mutated(random, random.choice(flights)), 0.0) == []
        wire.server.run(100.0)
        wire.client.run(100.0)
        assert "connected" not in wire.states


def test_the_key_expansion_is_that_of_tls_1_2() -> None:
    """A widely used vector of P_SHA256, from the IETF's TLS mailing list."""
    secret = bytes.fromhex("9bbe436ba940f017b17652849a71db35")
    seed = b"test label" + bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c")
    expected = "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9"
    assert expand(secret, seed, 40).hex() == expected


def test_a_certificate_is_small_and_its_fingerprint_is_of_the_der_form() -> None:
    assert len(OURS.der) < 300  # it travels in a flight that may be three times a ClientHello
    assert len(OURS.fingerprint) == 32 and OURS.fingerprint != THEIRS.fingerprint
