"""How much is too much: token buckets, and who counts as one address. No clock: `now` is an argument, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

OVER_FOR = 10.0  # seconds over a rate before the sender is closed with 1008
NEVER = float("-inf")
CALM = 1.0  # seconds without a refusal after which a sender counts as calm again


class Bucket:
    """A token bucket in one number: the moment at which it would be full again.

    `rate` per second, `burst` at once. A rate of 0 means no limit.
    """

    __slots__ = ("_full_at", "_spans")

    def __init__(self, rate: float, burst: float) -> None:
        self._spans = spans(rate, burst)
        self._full_at = 0.0

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Takes `amount` if it is there, all or nothing."""
        interval, window = self._spans
        full_at = max(self._full_at, now) + amount * interval
        if full_at - now > window:
            return False
        self._full_at = full_at
        return True


@dataclass(frozen=True, slots=True)
class Allowance:
    """What each client of a room may send: two token buckets as (seconds per unit, seconds of burst)."""

    message: tuple[float, float]
    byte: tuple[float, float]

    @classmethod
    def of(cls, message_rate: float, message_burst: float, byte_rate: float, byte_burst: float) -> Allowance:
        """Rates per second; 0 = no limit."""
        return cls(spans(message_rate, message_burst), spans(byte_rate, byte_burst))


def spans(rate: float, burst: float) -> tuple[float, float]:
    """Seconds per unit, and of the burst; a microsecond more, so that no rounding takes a unit away."""
    return (1 / rate, burst / rate + 1e-6) if rate > 0 else (0.0, 0.0)


class Meter:
    """What one client has sent, against its allowance; and for how long it has been over.

    Two buckets in one look, since every message passes here.
    """

    __slots__ = ("_allowance", "_bytes_full_at", "_last_refusal", "_messages_full_at", "_over_since", "_told")

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._messages_full_at = self._bytes_full_at = 0.0
        self._over_since = self._last_refusal = self._told = NEVER

    def take(self, now: float, size: int) -> bool:
        """One message of `size` bytes; False if it is over a rate, and then it costs nothing."""
        allowance = self._allowance
        interval, window = allowance.message
        messages = self._messages_full_at
        messages = (messages if messages > now else now) + interval
        if messages - now > window:
            return False
        interval, window = allowance.byte
        octets = self._bytes_full_at
        octets = (octets if octets > now else now) + size * interval
        if octets - now > window:
            return False
        self._messages_full_at, self._bytes_full_at = messages, octets
        return True

    def refuse(self, now: float) -> None:
        """Notes a refusal; after a calm second they count anew."""
        if now - self._last_refusal > CALM:
            self._over_since = now
        self._last_refusal = now

    def tells(self, now: float) -> bool:
        """Whether to tell the sender of a refusal: once per second."""
        if now - self._told < CALM:
            return False
        self._told = now
        return True

    def over_too_long(self, now: float) -> bool:
        return now - self._over_since >= OVER_FOR


class Tally:
    """Counts what each key holds now, up to `most` (0 = no limit). Forgets keys that hold nothing."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, int] = {}

    def has_room(self, key: str) -> bool:
        return not self._most or self._held.get(key, 0) < self._most

    def take(self, key: str) -> bool:
        if not self.has_room(key):
            return False
        self._held[key] = self._held.get(key, 0) + 1
        return True

    def give_back(self, key: str) -> None:
        held = self._held[key] - 1
        if held:
            self._held[key] = held
        else:
            del self._held[key]

    def __len__(self) -> int:
        return len(self._held)


class Buckets:
    """A bucket per key. Of more than `keys` keys the least recently used are forgotten, so that memory is bounded."""

    def __init__(self, rate: float, burst: float, keys: int = 10_000) -> None:
        self._rate, self._burst, self._keys = rate, burst, keys
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, key: str, now: float) -> bool:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, self._burst)
            if len(self._buckets) > self._keys:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket.take(now)


@lru_cache(maxsize=4096)
def network(address: str) -> str:
    """What is counted as one address: an IPv4 address, or the /64 of an IPv6 one (a household is given that many)."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a UNIX socket, or a test's name
    if ip.version == 6 and ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(ip) if ip.version == 4 else str(ip_network((int(ip), 64), strict=False))


def client_address(peer: str, forwarded: Sequence[str], proxies: tuple[Network, ...]) -> str:
    """The client's address: the rightmost hop that is no trusted proxy.

    `peer` is the other end of the socket, `forwarded` the values of X-Forwarded-For. A proxy appends whom it saw, so
    only what stands right of the first untrusted hop was written by proxies of ours; the rest is a claim.
    """
    address = peer
    for hop in reversed([hop.strip() for value in forwarded for hop in value.split(",")]):
        if not trusted(address, proxies):
            break
        try:
            bare = hop.rpartition(":")[0] if hop.count(":") == 1 or "]:" in hop else hop
            address = str(ip_address(bare.strip("[]")))
        except ValueError:
            break  # not written by a proxy that works; the last good hop counts
    return address


def trusted(address: str, proxies: tuple[Network, ...]) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if ip.version == 6 and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip in proxy for proxy in proxies)
