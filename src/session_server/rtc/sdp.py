"""Offer and answer: read defensively, written from a template. Only what a lone data channel needs.

RFC 8866 (SDP), RFC 8839 (ICE), RFC 8841 (SCTP over DTLS), RFC 8842 (DTLS), RFC 8122 (fingerprints). The offer's form is
the one that geckos.io clients, browsers and libdatachannel were seen to take (docs/reference/wire.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NoReturn

from .stun import Credentials

MAX_SDP: Final = 16 * 1024  # characters
MAX_LINES: Final = 512
MAX_CANDIDATES: Final = 16  # of an offer; more are not looked at
MAX_MESSAGE_SIZE: Final = 65536  # bytes that a peer takes who does not say (RFC 8841 §6.1)
ANY_SIZE: Final = 1 << 32  # bytes; what "0" means there
SCTP_PORT: Final = 5000

HOST_PREFERENCE: Final = 126  # of a candidate's type (RFC 8445 §5.1.2.2)

UFRAG: Final = re.compile(r"[A-Za-z0-9+/]{4,256}")  # RFC 8839 §5.4
PASSWORD: Final = re.compile(r"[A-Za-z0-9+/]{22,256}")
SHA_256: Final = re.compile(r"[sS][hH][aA]-256 +((?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2})")
NUMBER: Final = re.compile(r"[0-9]{1,10}")
MEDIA: Final = re.compile(r"application [0-9]{1,5} UDP/DTLS/SCTP webrtc-datachannel")
CANDIDATE: Final = re.compile(  # foundation component transport priority address port type (RFC 8839 §5.1)
    r"[^ ]{1,32} 1 (?:UDP|udp) ([0-9]{1,10}) ([0-9A-Fa-f:.]{2,45}) ([0-9]{1,5}) typ [a-z]+(?: .*)?"
)

OFFER: Final = """\
v=0
o=rtc {session} 0 IN IP4 127.0.0.1
s=-
t=0 0
a=ice-lite
a=group:BUNDLE 0
a=msid-semantic:WMS *
a=ice-options:ice2,trickle
a=fingerprint:sha-256 {fingerprint}
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=mid:0
a=sendrecv
a=sctp-port:5000
a=max-message-size:{size}
a=setup:actpass
a=ice-ufrag:{ufrag}
a=ice-pwd:{pwd}
{candidates}a=end-of-candidates
"""
ANSWER: Final = """\
v=0
o=- {session} 0 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
a=msid-semantic:WMS *
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=ice-ufrag:{ufrag}
a=ice-pwd:{pwd}
a=ice-options:ice2
a=fingerprint:sha-256 {fingerprint}
a=setup:active
a=mid:0
a=sctp-port:5000
a=max-message-size:{size}
"""

Attributes = dict[str, list[str]]  # name → its values, in order


class SdpError(ValueError):
    """An offer or answer that we cannot use; says what was seen and what was expected."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where an agent may be reached."""

    host: str
    port: int
    priority: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side said of itself."""

    ufrag: str
    pwd: str
    fingerprint: bytes  # SHA-256 of its certificate's DER form
    setup: str  # "active" in an answer, "actpass" or "passive" in an offer (RFC 8842 §5)
    max_message_size: int  # bytes that it takes in one message
    sctp_port: int

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.ufrag, self.pwd)


@dataclass(frozen=True, slots=True)
class Offer(Answer):
    """The same of an ICE-lite server, and where it is reached."""

    candidates: tuple[Candidate, ...] = ()  # highest priority first


def write_offer(
    session: int,
    credentials: Credentials,
    fingerprint: bytes,
    addresses: Iterable[tuple[str, int]],
    max_message_size: int,
) -> str:
    """Our offer. `session` is a random number below 2^63; `addresses` are IP addresses and ports, best first."""
    candidates = "".join(
        f"a=candidate:{number} 1 UDP {priority(number)} {ip_address(host)} {port} typ host\n"
        for number, (host, port) in enumerate(addresses, start=1)
    )
    return OFFER.format(
        session=session,
        fingerprint=fingerprint.hex(":").upper(),
        size=max_message_size,
        ufrag=credentials.ufrag,
        pwd=credentials.password,
        candidates=candidates,
    ).replace("\n", "\r\n")


def write_answer(session: int, credentials: Credentials, fingerprint: bytes, max_message_size: int) -> str:
    """Our answer as a client: without candidates, since the server learns our address from our checks."""
    return ANSWER.format(
        session=session,
        fingerprint=fingerprint.hex(":").upper(),
        size=max_message_size,
        ufrag=credentials.ufrag,
        pwd=credentials.password,
    ).replace("\n", "\r\n")


def priority(number: int) -> int:
    """Of our nth host candidate, from 1: preference of its type, of itself, component (RFC 8445 §5.1.2.1)."""
    return (HOST_PREFERENCE << 24) | ((65536 - number) << 8) | 255


def parse_answer(sdp: str) -> Answer:
    """A client's answer to our offer; raises SdpError. It must be "active": we are the DTLS server."""
    session, media = sections(sdp)
    answer = read(session, media)
    if answer.setup != "active":
        wrong("a=setup", answer.setup, "active")
    return answer


def parse_offer(sdp: str) -> Offer:
    """A server's offer, for our client side; raises SdpError."""
    session, media = sections(sdp)
    if "ice-lite" not in session:
        raise SdpError("no a=ice-lite, expected the offer of an ICE-lite server")
    offer = read(session, media)
    if offer.setup not in ("actpass", "passive"):
        wrong("a=setup", offer.setup, "actpass or passive")
    found = [candidate(value) for value in media.get("candidate", ())[:MAX_CANDIDATES]]
    candidates = sorted((one for one in found if one), key=lambda one: -one.priority)
    if not candidates:
        raise SdpError(f"none of {len(found)} candidates has an IP address and UDP, expected at least one")
    return Offer(
        offer.ufrag,
        offer.pwd,
        offer.fingerprint,
        offer.setup,
        offer.max_message_size,
        offer.sctp_port,
        tuple(candidates),
    )


def sections(sdp: str) -> tuple[Attributes, Attributes]:
    """The attributes of the session and of its one media section."""
    if len(sdp) > MAX_SDP:
        raise SdpError(f"SDP of {len(sdp)} characters, expected at most {MAX_SDP}")
    lines = [line.rstrip("\r") for line in sdp.split("\n")]
    if lines[0] != "v=0":
        wrong("the first line", lines[0], "v=0")
    if len(lines) > MAX_LINES:
        raise SdpError(f"SDP of {len(lines)} lines, expected at most {MAX_LINES}")
    session: Attributes = {}
    media: Attributes | None = None
    for line in lines:
        kind, _, value = line.partition("=")
        if kind == "m":
            if media is not None:
                raise SdpError("a second m= section, expected only that of a data channel")
            check_media(value)
            media = {}
        elif kind == "a":
            name, _, value = value.partition(":")
            (session if media is None else media).setdefault(name, []).append(value)
    if media is None:
        raise SdpError("no m= section, expected that of a data channel")
    return session, media


def check_media(value: str) -> None:
    if not MEDIA.fullmatch(value):
        wrong("m=", value, "application PORT UDP/DTLS/SCTP webrtc-datachannel")
    if value.split()[1] == "0":  # RFC 3264 §6
        raise SdpError("m= has port 0: the data channel was refused")


def read(session: Attributes, media: Attributes) -> Answer:
    """What both descriptions say. Of the media section, else of the session (RFC 8839 §5.4, RFC 8122 §5)."""

    def value(name: str, default: str | None = None) -> str:
        values = media.get(name) or session.get(name)
        if values:
            return values[0]
        if default is None:
            raise SdpError(f"no a={name}")
        return default

    def number(name: str, default: int, most: int) -> int:
        text = value(name, str(default))
        if not NUMBER.fullmatch(text) or int(text) > most:
            wrong(f"a={name}", text, f"a number up to {most}")
        return int(text)

    ufrag, pwd = value("ice-ufrag"), value("ice-pwd")
    if not UFRAG.fullmatch(ufrag):
        wrong("a=ice-ufrag", ufrag, "4 to 256 letters, digits, + or /")
    if not PASSWORD.fullmatch(pwd):  # not quoted: it is a secret
        raise SdpError(f"a=ice-pwd of {len(pwd)} characters, expected 22 to 256 letters, digits, + or /")
    size = number("max-message-size", MAX_MESSAGE_SIZE, ANY_SIZE)
    port = number("sctp-port", SCTP_PORT, 65535)
    if port != SCTP_PORT:  # no browser or library was seen to use another
        wrong("a=sctp-port", str(port), str(SCTP_PORT))
    fingerprint = read_fingerprint(media.get("fingerprint") or session.get("fingerprint") or [])
    return Answer(ufrag, pwd, fingerprint, value("setup"), size or ANY_SIZE, port)


def read_fingerprint(values: list[str]) -> bytes:
    """The SHA-256 among them; there may be others beside it (RFC 8122 §5)."""
    for value in values:
        match = SHA_256.fullmatch(value)
        if match:
            return bytes.fromhex(match[1].replace(":", ""))
    if not values:
        raise SdpError("no a=fingerprint")
    wrong("a=fingerprint", values[0], "sha-256 and 32 bytes as AB:CD:…")


def candidate(value: str) -> Candidate | None:
    """None if it is none for us: TCP, another component, or a name (such as the .local ones of browsers)."""
    match = CANDIDATE.fullmatch(value)
    if match is None:
        return None
    priority, host, port = int(match[1]), match[2], int(match[3])
    try:
        host = str(ip_address(host))
    except ValueError:
        return None
    return Candidate(host, port, priority) if 0 < port < 65536 else None


def wrong(what: str, seen: str, expected: str) -> NoReturn:
    shown = seen if len(seen) <= 60 else f"{seen[:60]}…"
    raise SdpError(f"{what} is {shown!r}, expected {expected}")
