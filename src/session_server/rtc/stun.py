"""STUN messages as ICE uses them: read defensively, written, proven by a password. No sockets, no retransmission.

RFC 8489 (STUN), RFC 8445 §7, §16 (ICE). Only the short-term credential mechanism (RFC 8489 §9.1), only HMAC-SHA1: that
is what ICE agents speak.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from binascii import crc32
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from struct import pack, unpack_from
from typing import Final

Address = tuple[str, int] | tuple[str, int, int, int]  # as a socket gives it: host, port, and for IPv6 flow and scope

COOKIE: Final = 0x2112A442
COOKIE_BYTES: Final = COOKIE.to_bytes(4, "big")
HEADER: Final = 20  # bytes: type 2, length 2, cookie 4, transaction 12 (§5)

REQUEST, INDICATION, SUCCESS, ERROR = 0x0001, 0x0011, 0x0101, 0x0111  # of method Binding, the only one of ICE
REQUEST_TYPE: Final = REQUEST.to_bytes(2, "big")

USERNAME, MESSAGE_INTEGRITY, ERROR_CODE, UNKNOWN_ATTRIBUTES = 0x0006, 0x0008, 0x0009, 0x000A
MESSAGE_INTEGRITY_SHA256, XOR_MAPPED_ADDRESS, PRIORITY, USE_CANDIDATE = 0x001C, 0x0020, 0x0024, 0x0025
FINGERPRINT, ICE_CONTROLLED, ICE_CONTROLLING = 0x8028, 0x8029, 0x802A
KNOWN: Final = frozenset(
    (USERNAME, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, ERROR_CODE, UNKNOWN_ATTRIBUTES, XOR_MAPPED_ADDRESS)
    + (PRIORITY, USE_CANDIDATE)
)
OPTIONAL: Final = 0x8000  # attribute types from here on may be ignored (§14)

BAD_REQUEST, UNAUTHENTICATED, UNKNOWN_ATTRIBUTE, ROLE_CONFLICT = 400, 401, 420, 487


class StunError(ValueError):
    """A datagram that is no STUN message; says what was seen and what was expected."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One agent's user name fragment and password (RFC 8445 §5.3), both of ice-chars: letters, digits, + and /."""

    ufrag: str
    password: str

    @classmethod
    def derive(cls, secret: bytes, id: str) -> Credentials:
        """Always the same for an id, so an offer that was not answered yet needs no memory. 128 bits of password.

        The fragment, which crosses the net in the clear, does not show the id, which is the secret of signalling.
        """
        return cls._of(hmac.digest(secret, b"ice " + id.encode(), sha256))

    @classmethod
    def new(cls, random: Callable[[int], bytes]) -> Credentials:
        return cls._of(random(25))

    @classmethod
    def _of(cls, key: bytes) -> Credentials:
        return cls(b64encode(key[:9]).decode(), b64encode(key[9:25]).decode().rstrip("="))


@dataclass(slots=True)
class Message:
    """What a datagram said. Nothing in it is proven before `is_from` was asked."""

    kind: int  # REQUEST, INDICATION, SUCCESS, ERROR, or of a method that ICE does not use
    transaction: bytes  # 12 bytes
    attributes: dict[int, bytes]  # of each type the first one (§14)
    data: bytes
    integrity_at: int  # where MESSAGE-INTEGRITY begins; 0 = there is none

    def is_from(self, password: str) -> bool:
        """The sender knows the password: MESSAGE-INTEGRITY holds (§14.5)."""
        at = self.integrity_at
        if not at:
            return False
        # The length in the header is, for the HMAC, that of a message which ends after this attribute.
        covered = self.data[:2] + (at + 24 - HEADER).to_bytes(2, "big") + self.data[4:at]
        digest = hmac.digest(password.encode(), covered, "sha1")
        return hmac.compare_digest(digest, self.attributes[MESSAGE_INTEGRITY])

    @property
    def ufrag(self) -> str | None:
        """Whom the sender wants."""
        return ufrag_in(self.attributes.get(USERNAME, b""))

    @property
    def unknown(self) -> list[int]:
        """Attributes that must be understood and are not (§6.3.1)."""
        return [type for type in self.attributes if type < OPTIONAL and type not in KNOWN]

    @property
    def error(self) -> int | None:
        """The code of an error response, such as 401 (§14.8)."""
        value = self.attributes.get(ERROR_CODE, b"")
        return (value[2] & 7) * 100 + value[3] if len(value) >= 4 else None

    @property
    def mapped_address(self) -> tuple[str, int] | None:
        """Our address as the other side sees it (§14.2)."""
        value = self.attributes.get(XOR_MAPPED_ADDRESS)
        return None if value is None else read_xor_address(value, self.transaction)


def parse(data: bytes) -> Message:
    """Reads one datagram; raises StunError. A FINGERPRINT, if there is one, holds (§14.7).

    Each attribute: type 2, length 2, value, and zero to three bytes of padding (§14).
    """
    if len(data) < HEADER or data[0] > 3:
        raise StunError(f"{len(data)} bytes beginning {data[:1].hex()}, expected at least {HEADER} beginning 00 to 03")
    kind, length, cookie = unpack_from("!HHI", data)
    if cookie != COOKIE:
        raise StunError(f"cookie {cookie:08x}, expected {COOKIE:08x}")
    if length % 4 or length != len(data) - HEADER:
        raise StunError(f"length {length} in the header, expected {len(data) - HEADER}, a multiple of 4")
    attributes: dict[int, bytes] = {}
    integrity_at = 0
    at = HEADER
    while at < len(data):
        type, size = unpack_from("!HH", data, at)
        end = at + 4 + size
        if end > len(data):
            raise StunError(f"attribute {type:04x} of {size} bytes, only {len(data) - at - 4} are left")
        value = data[at + 4 : end]
        if type == FINGERPRINT:
            check_fingerprint(data, at, value)
        elif type == MESSAGE_INTEGRITY and not integrity_at:
            if size != 20:
                raise StunError(f"MESSAGE-INTEGRITY of {size} bytes, expected 20")
            integrity_at = at
        elif integrity_at:  # whoever added this did not know the password; ignored (§14.5)
            at = end + -size % 4
            continue
        attributes.setdefault(type, value)
        at = end + -size % 4
    return Message(kind, data[8:HEADER], attributes, data, integrity_at)


def check_fingerprint(data: bytes, at: int, value: bytes) -> None:
    """CRC-32 of all before it, XOR "STUN"; it is the last attribute (§14.7)."""
    if at + 8 != len(data) or value != fingerprint(data[:at]):
        raise StunError("FINGERPRINT does not hold")


def fingerprint(data: bytes) -> bytes:
    return (crc32(data) ^ 0x5354554E).to_bytes(4, "big")


def ufrag_of(data: bytes) -> str | None:
    """Whose datagram this claims to be, for finding the peer, who reads it; None if it is no request."""
    if data[:2] != REQUEST_TYPE or data[4:8] != COOKIE_BYTES:
        return None
    at = HEADER
    while at + 4 <= len(data):
        type, size = unpack_from("!HH", data, at)
        if type == USERNAME:
            return ufrag_in(data[at + 4 : at + 4 + size])
        at += 4 + size + -size % 4
    return None


def ufrag_in(name: bytes) -> str | None:
    """A USERNAME is "ours:theirs" (RFC 8445 §7.2.2)."""
    ours, colon, _ = name.partition(b":")
    return ours.decode("ascii", "replace") if colon else None


def build(kind: int, transaction: bytes, attributes: Iterable[tuple[int, bytes]], password: str | None = None) -> bytes:
    """A message that ends with MESSAGE-INTEGRITY, if there is a password, and FINGERPRINT."""
    body = b"".join([pack("!HH", type, len(value)) + value + bytes(-len(value) % 4) for type, value in attributes])
    if password is not None:
        head = pack("!HHI", kind, len(body) + 24, COOKIE) + transaction
        body += pack("!HH", MESSAGE_INTEGRITY, 20) + hmac.digest(password.encode(), head + body, "sha1")
    data = pack("!HHI", kind, len(body) + 8, COOKIE) + transaction + body
    return data + pack("!HH", FINGERPRINT, 4) + fingerprint(data)


def check(
    transaction: bytes, local: str, remote: Credentials, priority: int, tie_breaker: bytes, nominate: bool = True
) -> bytes:
    """A connectivity check by the controlling agent (RFC 8445 §7.2.2); `local` is our own ufrag."""
    attributes = [
        (USERNAME, f"{remote.ufrag}:{local}".encode()),
        (PRIORITY, priority.to_bytes(4, "big")),
        (ICE_CONTROLLING, tie_breaker),
    ]
    if nominate:
        attributes.append((USE_CANDIDATE, b""))
    return build(REQUEST, transaction, attributes, remote.password)


def success(request: Message, address: Address, password: str) -> bytes:
    """The answer to a proven request: the address that it came from."""
    mapped = xor_address(address, request.transaction)
    return build(SUCCESS, request.transaction, [(XOR_MAPPED_ADDRESS, mapped)], password)


def refusal(request: Message, code: int, password: str | None = None) -> bytes | None:
    """An error response (§14.8); None if it would be longer than the request, so it amplifies nothing.

    Without words, which are for people, and people do not read them. `password` only for a request that was proven.
    """
    attributes = [(ERROR_CODE, bytes((0, 0, code // 100, code % 100)))]
    if code == UNKNOWN_ATTRIBUTE:
        attributes.append((UNKNOWN_ATTRIBUTES, b"".join(type.to_bytes(2, "big") for type in request.unknown)))
    answer = build(ERROR, request.transaction, attributes, password)
    return answer if len(answer) <= len(request.data) else None


def xor_address(address: Address, transaction: bytes) -> bytes:
    """Zero 1, family 1, port 2, host 4 or 16; port and host XOR cookie and transaction (§14.2)."""
    host = packed(address[0])
    return pack("!BBH", 0, 1 if len(host) == 4 else 2, address[1] ^ (COOKIE >> 16)) + xor(host, transaction)


@lru_cache(4096)
def packed(host: str) -> bytes:
    ip = ip_address(host.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:  # a socket for both: the sender knows of an IPv4 address
        ip = ip.ipv4_mapped
    return ip.packed


def xor(host: bytes, transaction: bytes) -> bytes:
    key = (COOKIE_BYTES + transaction)[: len(host)]
    return (int.from_bytes(host, "big") ^ int.from_bytes(key, "big")).to_bytes(len(host), "big")


def read_xor_address(value: bytes, transaction: bytes) -> tuple[str, int] | None:
    """None if it is none."""
    if len(value) not in (8, 20) or value[1] != (1 if len(value) == 8 else 2):
        return None
    return str(ip_address(xor(value[4:], transaction))), int.from_bytes(value[2:4], "big") ^ (COOKIE >> 16)
