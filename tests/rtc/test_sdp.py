"""Offers and answers: those of real peers, our own, and bent ones."""

from __future__ import annotations

from random import Random

import pytest

from session_server.rtc import sdp
from session_server.rtc.sdp import Candidate, SdpError
from session_server.rtc.stun import Credentials

PRINT = bytes(range(0xC0, 0xE0))
COLONS = PRINT.hex(":").upper()
CREDENTIALS = Credentials("xqSkxqSkxqSk", "t8u5YZvfFeXVkjzNXZIbDx")

CHROMIUM = (  # its answer as captured, but for the fingerprint
    "v=0\r\no=- 1109437739258495938 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic: WMS\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:QSvW\r\n"
    "a=ice-pwd:XVKyFnSrQnTPuEBUXlUpLLOD\r\na=ice-options:trickle\r\na=fingerprint:sha-256 " + COLONS + "\r\n"
    "a=setup:active\r\na=mid:0\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n"
)
POLYFILL = (  # node-datachannel's: fingerprint in the session part, candidates
    "v=0\r\no=rtc 3045952216 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic:WMS *\r\n"
    "a=ice-options:ice2,trickle\r\na=fingerprint:sha-256 " + COLONS + "\r\n"
    "m=application 46432 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 192.0.2.2\r\na=mid:0\r\na=sendrecv\r\n"
    "a=sctp-port:5000\r\na=max-message-size:65536\r\na=setup:active\r\na=ice-ufrag:xqSk\r\n"
    "a=ice-pwd:t8u5YZvfFeXVkjzNXZIbDx\r\na=candidate:2 1 UDP 2116026111 fd00::2 46432 typ host\r\n"
    "a=candidate:1 1 UDP 2114977791 192.0.2.2 46432 typ host\r\na=end-of-candidates\r\n"
)
FIREFOX = (  # from its documentation, not captured: session-level setup and fingerprint, zero for any size
    "v=0\no=mozilla...THIS_IS_SDPARTA-99.0 7 0 IN IP4 0.0.0.0\ns=-\nt=0 0\na=sendrecv\n"
    f"a=fingerprint:sha-1 AB:CD\na=fingerprint:SHA-256 {COLONS.lower()}\na=group:BUNDLE 0\na=ice-options:trickle\n"
    "a=setup:active\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\nc=IN IP4 0.0.0.0\na=sendrecv\n"
    "a=ice-pwd:0123456789abcdef0123456789abcdef\na=ice-ufrag:0123abcd\na=mid:0\na=sctp-port:5000\na=max-message-size:0"
)


def test_answers_of_real_peers_are_read() -> None:
    answer = sdp.parse_answer(CHROMIUM)
    assert answer == sdp.Answer("QSvW", "XVKyFnSrQnTPuEBUXlUpLLOD", PRINT, "active", 262144, 5000)
    assert answer.credentials == Credentials("QSvW", "XVKyFnSrQnTPuEBUXlUpLLOD")
    assert sdp.parse_answer(POLYFILL).max_message_size == 65536
    firefox = sdp.parse_answer(FIREFOX)
    assert (firefox.fingerprint, firefox.max_message_size) == (PRINT, sdp.ANY_SIZE)


def test_an_answer_that_says_nothing_of_sizes_has_the_defaults_of_rfc_8841() -> None:
    short = CHROMIUM.replace("a=sctp-port:5000\r\na=max-message-size:262144\r\n", "")
    answer = sdp.parse_answer(short)
    assert (answer.max_message_size, answer.sctp_port) == (65536, 5000)


def test_our_offer_is_read_by_our_client_side() -> None:
    addresses = [("192.0.2.2", 8889), ("fd00::2", 8889)]
    text = sdp.write_offer(3045952216, CREDENTIALS, PRINT, addresses, 65536)
    offer = sdp.parse_offer(text)
    assert offer.candidates == (Candidate("192.0.2.2", 8889, 2130706431), Candidate("fd00::2", 8889, 2130706175))
    assert (offer.credentials, offer.fingerprint, offer.setup) == (CREDENTIALS, PRINT, "actpass")
    assert (offer.max_message_size, offer.sctp_port) == (65536, 5000)
    assert text.count("\r\n") == text.count("\n")
    assert "a=candidate:2 1 UDP 2130706175 fd00::2 8889 typ host\r\na=end-of-candidates\r\n" in text


def test_our_answer_is_read_by_our_server_side() -> None:
    text = sdp.write_answer(1, CREDENTIALS, PRINT, 65536)
    answer = sdp.parse_answer(text)
    assert (answer.credentials, answer.fingerprint, answer.max_message_size) == (CREDENTIALS, PRINT, 65536)


def test_an_offer_never_carries_what_is_no_address() -> None:
    with pytest.raises(ValueError):
        sdp.write_offer(1, CREDENTIALS, PRINT, [("host\r\na=evil", 1)], 65536)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 1 UDP 2130706431 192.0.2.2 8889 typ host", Candidate("192.0.2.2", 8889, 2130706431)),
        ("1 1 udp 1 fd00::2 1 typ srflx raddr 0.0.0.0 rport 0", Candidate("fd00::2", 1, 1)),
        ("1 1 UDP 1 8f1a.local 5000 typ host", None),
        ("1 1 TCP 1 192.0.2.2 9 typ host tcptype active", None),
        ("1 2 UDP 1 192.0.2.2 5000 typ host", None),
        ("1 1 UDP 1 192.0.2.256 5000 typ host", None),
        ("1 1 UDP 1 192.0.2.2 0 typ host", None),
        ("1 1 UDP 1 192.0.2.2 65536 typ host", None),
        ("", None),
    ],
)
def test_candidates_that_are_none_for_us_are_passed_over(line: str, expected: Candidate | None) -> None:
    assert sdp.candidate(line) == expected


BAD = (
    ("", "first line is '', expected v=0"),
    ("v=1\r\n", "first line is 'v=1'"),
    ("v=0\r\n", "no m= section"),
    ("v=0\r\n" + "a=x\r\n" * 600, "SDP of 602 lines, expected at most 512"),
    (CHROMIUM + "a=x:" + "y" * 16384, "characters, expected at most 16384"),
    (CHROMIUM + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n", "a second m= section"),
    (CHROMIUM.replace("m=application 9 UDP", "m=application 0 UDP"), "refused"),
    (CHROMIUM.replace("m=application 9 UDP", "m=application 9 TCP"), "expected application PORT UDP/DTLS/SCTP"),
    (CHROMIUM.replace("webrtc-datachannel", "5000"), "m= is "),
    (CHROMIUM.replace("setup:active", "setup:passive"), "a=setup is 'passive', expected active"),
    (CHROMIUM.replace("setup:active", "setup:actpass"), "a=setup is 'actpass'"),
    (CHROMIUM.replace("a=setup:active\r\n", ""), "no a=setup"),
    (CHROMIUM.replace("a=ice-ufrag:QSvW\r\n", ""), "no a=ice-ufrag"),
    (CHROMIUM.replace("QSvW", "QSv"), "a=ice-ufrag is 'QSv'"),
    (CHROMIUM.replace("QSvW", "Q" * 257), "…', expected 4 to 256"),
    (CHROMIUM.replace("XVKyFnSrQnTPuEBUXlUpLLOD", "short"), "a=ice-pwd of 5 characters"),
    (CHROMIUM.replace("XVKyFnSrQnTPuEBUXlUpLLOD", "XVKyFnSrQnTPuEBUXlUpLLO\0"), "a=ice-pwd of 24 characters"),
    (CHROMIUM.replace("sha-256", "sha-512"), "a=fingerprint is 'sha-512 "),
    (CHROMIUM.replace(COLONS, COLONS[:-3]), "a=fingerprint is "),
    (CHROMIUM.replace("a=fingerprint:sha-256 " + COLONS + "\r\n", ""), "no a=fingerprint"),
    (CHROMIUM.replace("262144", "-1"), "a=max-message-size is '-1'"),
    (CHROMIUM.replace("262144", "1e3"), "a=max-message-size is '1e3'"),
    (CHROMIUM.replace("262144", "\u0663"), "a=max-message-size"),
    (CHROMIUM.replace("sctp-port:5000", "sctp-port:65536"), "a=sctp-port is '65536', expected a number up to 65535"),
    (CHROMIUM.replace("sctp-port:5000", "sctp-port:5001"), "a=sctp-port is '5001', expected 5000"),
)


@pytest.mark.parametrize(("text", "words"), BAD)
def test_a_bad_answer_is_refused_with_what_was_seen_and_expected(text: str, words: str) -> None:
    with pytest.raises(SdpError) as caught:
        sdp.parse_answer(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_password_is_not_quoted_in_an_error() -> None:
    with pytest.raises(SdpError) as caught:
        sdp.parse_answer(CHROMIUM.replace("XVKyFnSrQnTPuEBUXlUpLLOD", "secret!"))
    assert "secret" not in str(caught.value)


def test_a_bad_offer_is_refused() -> None:
    good = sdp.write_offer(1, CREDENTIALS, PRINT, [("127.0.0.1", 8889)], 65536)
    for text, words in (
        (good.replace("a=ice-lite\r\n", ""), "no a=ice-lite"),
        (good.replace("setup:actpass", "setup:active"), "a=setup is 'active', expected actpass or passive"),
        (good.replace("127.0.0.1 8889", "page.local 8889"), "none of 1 candidates"),
    ):
        with pytest.raises(SdpError) as caught:
            sdp.parse_offer(text)
        assert words in str(caught.value)


def test_a_thousand_candidates_are_not_all_looked_at() -> None:
    good = sdp.write_offer(1, CREDENTIALS, PRINT, [("127.0.0.1", 8889)] * 100, 65536)
    assert len(sdp.parse_offer(good).candidates) == sdp.MAX_CANDIDATES


def test_bent_descriptions_raise_nothing_but_the_error_of_this_module() -> None:
    random = Random(8866)
    offer = sdp.write_offer(1, CREDENTIALS, PRINT, [("127.0.0.1", 8889), ("fd00::2", 8889)], 65536)
    refused = 0
    for _ in range(3000):
        text = list(random.choice((CHROMIUM, POLYFILL, FIREFOX, offer)))
        for _ in range(random.randrange(1, 12)):
            text = text or ["v"]
            at = random.randrange(len(text))
            match random.randrange(4):
                case 0:
                    text[at] = chr(random.choice((0, 10, 13, 32, 58, 0xD800, 0x2028, random.randrange(0x250))))
                case 1:
                    del text[at : at + random.randrange(40)]
                case 2:
                    text[at:at] = text[at : at + random.randrange(80)]
                case 3:
                    text = text[:at]
        for read in (sdp.parse_answer, sdp.parse_offer):
            try:
                read("".join(text))
            except SdpError as error:
                assert len(str(error)) < 700
                refused += 1
    assert refused > 2000
