"""STUN: the vectors of RFC 5769, and datagrams that somebody bent."""

from __future__ import annotations

from random import Random

import pytest

from session_server.rtc import stun
from session_server.rtc.stun import Credentials, StunError

PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"
TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")

REQUEST = bytes.fromhex(  # RFC 5769 §2.1
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff"
    "80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249"
    "c1b571a280280004e57a3bcf"
)
RESPONSE_4 = bytes.fromhex(  # §2.2
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
RESPONSE_6 = bytes.fromhex(  # §2.3
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9fa"
    "a5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)
VECTORS = (REQUEST, RESPONSE_4, RESPONSE_6)
TIE = bytes.fromhex("932ff9b151263b36")


def test_the_request_of_rfc_5769_is_read_and_proven() -> None:
    message = stun.parse(REQUEST)
    assert (message.kind, message.transaction, message.ufrag) == (stun.REQUEST, TRANSACTION, "evtj")
    assert message.attributes[stun.USERNAME] == b"evtj:h6vY"
    assert message.attributes[stun.PRIORITY] == bytes.fromhex("6e0001ff")
    assert message.attributes[stun.ICE_CONTROLLED] == TIE
    assert message.is_from(PASSWORD)
    assert not message.is_from(PASSWORD + "x")
    assert not message.unknown


@pytest.mark.parametrize(
    ("data", "address"),
    [(RESPONSE_4, ("192.0.2.1", 32853)), (RESPONSE_6, ("2001:db8:1234:5678:11:2233:4455:6677", 32853))],
)
def test_the_responses_of_rfc_5769_are_read_and_written(data: bytes, address: tuple[str, int]) -> None:
    message = stun.parse(data)
    assert message.kind == stun.SUCCESS
    assert message.mapped_address == address
    assert message.is_from(PASSWORD)
    software = [(0x8022, b"test vector")]  # its padding is 0x20 in the vectors, so only the value can be compared
    mine = stun.parse(stun.build(stun.SUCCESS, TRANSACTION, [*software, _mapped(address)], PASSWORD))
    assert mine.attributes[stun.XOR_MAPPED_ADDRESS] == message.attributes[stun.XOR_MAPPED_ADDRESS]
    assert mine.is_from(PASSWORD)


def _mapped(address: tuple[str, int]) -> tuple[int, bytes]:
    return stun.XOR_MAPPED_ADDRESS, stun.xor_address(address, TRANSACTION)


def test_a_check_carries_what_an_ice_lite_server_reads() -> None:
    remote = Credentials("evtj", PASSWORD)
    message = stun.parse(stun.check(TRANSACTION, "h6vY", remote, 0x6E0001FF, TIE))
    assert message.attributes[stun.USERNAME] == b"evtj:h6vY"
    assert message.attributes[stun.ICE_CONTROLLING] == TIE
    assert message.attributes[stun.USE_CANDIDATE] == b""
    assert message.is_from(PASSWORD)
    assert stun.USE_CANDIDATE not in stun.parse(stun.check(TRANSACTION, "h", remote, 1, TIE, False)).attributes


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 1), ("::ffff:127.0.0.1", 65535, 0, 0), ("fe80::1%eth0", 5000, 0, 2), ("fd00::2", 5000)]
)
def test_an_answer_is_never_longer_than_the_request(address: stun.Address) -> None:
    request = stun.parse(stun.check(TRANSACTION, "abcd", Credentials("abcd", PASSWORD), 1, TIE, nominate=False))
    answer = stun.success(request, address, PASSWORD)
    assert len(answer) <= len(request.data)
    host = address[0].partition("%")[0].removeprefix("::ffff:")  # RFC 8445: an IPv4 sender knows only of IPv4
    assert stun.parse(answer).mapped_address == (host, address[1])
    for code in (400, 401, 420, 487):
        refusal = stun.refusal(request, code)
        assert refusal is not None and len(refusal) <= len(request.data)
        assert stun.parse(refusal).error == code
        assert stun.parse(refusal).integrity_at == 0


def test_a_refusal_that_would_be_longer_than_its_request_is_not_written() -> None:
    bare = stun.parse(stun.build(stun.REQUEST, TRANSACTION, []))
    assert stun.refusal(bare, 400) is None


def test_attributes_that_must_be_understood_are_named() -> None:
    request = stun.parse(stun.build(stun.REQUEST, TRANSACTION, [(0x7FFF, b"x"), (0xC057, b"abcd")], PASSWORD))
    assert request.unknown == [0x7FFF]
    refusal = stun.refusal(request, 420, PASSWORD)
    assert refusal is None or stun.parse(refusal).attributes[stun.UNKNOWN_ATTRIBUTES] == b"\x7f\xff"


def test_what_stands_after_the_integrity_is_ignored() -> None:
    proven = stun.build(stun.REQUEST, TRANSACTION, [(stun.USERNAME, b"a:b")], PASSWORD)[:-8]
    added = proven + bytes.fromhex("00250000")  # USE-CANDIDATE, added on the way
    data = added[:2] + (len(added) - 20).to_bytes(2, "big") + added[4:]
    message = stun.parse(data)
    assert message.is_from(PASSWORD)
    assert stun.USE_CANDIDATE not in message.attributes


def test_of_two_attributes_the_first_counts() -> None:
    message = stun.parse(stun.build(stun.REQUEST, TRANSACTION, [(stun.USERNAME, b"a:b"), (stun.USERNAME, b"c:d")]))
    assert message.ufrag == "a"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (REQUEST[:19], "19 bytes"),
        (b"\x04" + REQUEST[1:], "beginning 04"),
        (REQUEST[:4] + b"\0\0\0\0" + REQUEST[8:], "cookie 00000000"),
        (REQUEST + b"\0\0\0\0", "length 88"),
        (REQUEST[:-4], "length 88"),
        (REQUEST[:2] + b"\0\x56" + REQUEST[4:-2], "length 86"),
        (REQUEST[:-1] + b"\0", "FINGERPRINT"),
        (bytes.fromhex("000100042112a442") + TRANSACTION + bytes.fromhex("00060001"), "attribute 0006 of 1"),
        (bytes.fromhex("000100082112a442") + TRANSACTION + bytes.fromhex("0008000401020304"), "expected 20"),
        (bytes.fromhex("0001000c2112a442") + TRANSACTION + bytes.fromhex("8028000400000000") + bytes(4), "FINGERPRINT"),
    ],
)
def test_what_is_no_stun_message_is_refused_with_what_was_seen(data: bytes, words: str) -> None:
    with pytest.raises(StunError, match=words):
        stun.parse(data)


def test_every_flipped_bit_of_a_proven_message_is_noticed() -> None:
    whole = bytearray(REQUEST[:-8])  # without FINGERPRINT
    whole[3] = len(whole) - 20
    assert stun.parse(bytes(whole)).is_from(PASSWORD)
    for at in range(len(whole)):
        for bit in range(8):
            bent = bytearray(whole)
            bent[at] ^= 1 << bit
            try:
                message = stun.parse(bytes(bent))
            except StunError:
                continue
            assert not message.is_from(PASSWORD), (at, bit)


def test_bent_datagrams_raise_nothing_but_the_error_of_this_module() -> None:
    random = Random(8489)
    for count in range(3000):
        data = bytearray(random.choice(VECTORS))
        for _ in range(random.randrange(1, 6)):
            data[random.randrange(len(data))] = random.randrange(256)
        if count % 3 == 0:
            del data[random.randrange(len(data)) :]
        elif count % 3 == 1:  # a right length, so that the attributes are reached, and no FINGERPRINT
            data = data[: len(data) - 8]
            data[2:4] = (len(data) - 20).to_bytes(2, "big")
        named = stun.ufrag_of(bytes(data))  # whether or not the rest holds
        try:
            message = stun.parse(bytes(data))
        except StunError:
            continue
        assert named == (message.ufrag if message.kind == stun.REQUEST else None)
        assert not message.is_from("another password")
        _ = message.ufrag, message.unknown, message.error, message.mapped_address
        stun.refusal(message, 420)


def test_credentials_are_derived_and_differ_by_id_and_secret() -> None:
    first = Credentials.derive(b"secret", "XvkZjGJfZNCLnGd5QmQTF1aG")
    assert first == Credentials.derive(b"secret", "XvkZjGJfZNCLnGd5QmQTF1aG")
    others = [Credentials.derive(b"secret", "XvkZjGJfZNCLnGd5QmQTF1aH"), Credentials.derive(b"s", "XvkZjGJfZNCLnGd5")]
    assert len({first.password, *(other.password for other in others)}) == 3
    assert len(first.ufrag) == 12 and len(first.password) == 22  # 72 and 128 bits
    assert all(c.isalnum() or c in "+/" for c in first.ufrag + first.password)  # ice-char (RFC 8839 §5.4)
    assert Credentials.new(lambda size: bytes(size)).password == "A" * 22
