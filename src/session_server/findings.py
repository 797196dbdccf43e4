"""What the doctor's observations mean, and what to do about them, in words for people. No I/O, no clock."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct

SLOW: Final = 0.15  # seconds of a round trip, from which on players feel it
UNSTEADY: Final = 0.03  # seconds of jitter, from which on they see it
LOSSY: Final = 0.02  # share of datagrams
SKEW: Final = 30.0  # seconds between wall clocks; Date has whole seconds
RENEWED: Final = 0.2  # share of a certificate's life; less is left only where nobody renews it (Caddy does at a third)


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, but not for everybody or not well
    FAILED = "failed"
    SKIPPED = "skipped"  # not tried


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was tried, what was seen and, unless all is well, what to do about it."""

    check: str
    level: Level
    tried: str
    seen: str
    advice: str = ""
    figures: dict[str, float] = field(default_factory=dict)  # seconds, shares, days


def ok(check: str, tried: str, seen: str, **figures: float) -> Finding:
    return Finding(check, Level.OK, tried, seen, "", figures)


def warning(check: str, tried: str, seen: str, advice: str, **figures: float) -> Finding:
    return Finding(check, Level.WARNING, tried, seen, advice, figures)


def failed(check: str, tried: str, seen: str, advice: str, **figures: float) -> Finding:
    return Finding(check, Level.FAILED, tried, seen, advice, figures)


def skipped(check: str, tried: str, seen: str) -> Finding:
    return Finding(check, Level.SKIPPED, tried, seen)


# --- the way there ----------------------------------------------------------------------------------------------------


def no_connection(tried: str, error: OSError | UnicodeError) -> Finding:
    if isinstance(error, socket.gaierror | UnicodeError):
        return failed("connection", tried, "the name has no address", "Check its spelling, and its DNS records.")
    if isinstance(error, ConnectionRefusedError):
        return failed("connection", tried, "nobody listens there", "Start the server, or its proxy; check the port.")
    if isinstance(error, TimeoutError):
        return failed("connection", tried, "no answer", "Open the TCP port in the firewall, of the provider too.")
    return failed("connection", tried, shown(error.strerror or str(error)), "Is the server up, and the port open?")


def without_tls(tried: str, addresses: Iterable[str]) -> Finding:
    if all(ip_address(address).is_loopback for address in addresses):
        return ok("tls", tried, "without TLS, which browsers accept from their own computer")
    advice = "Put a TLS proxy such as Caddy in front, or give --tls-cert and --tls-key."
    return warning("tls", tried, "without TLS: pages that came by https are not let through by browsers", advice)


def certificate_life(tried: str, left: float, whole: float) -> Finding:
    """`left` and `whole` life in seconds."""
    days = left / 86400
    seen = f"good for {days:.0f} days" if days >= 2 else f"good for {left / 3600:.0f} hours"
    if left >= RENEWED * whole:
        return ok("tls", tried, f"trusted, {seen}", days=days)
    return warning("tls", tried, f"trusted, but only {seen}", "Renew it, and see why nothing does.", days=days)


def bad_certificate(tried: str, code: int, reason: str) -> Finding:
    """`code` is OpenSSL's X509_V_ERR_…"""
    advice = {
        10: "Renew it: it has expired. Caddy and certbot do so by themselves.",
        18: "It is self-signed. In development open the URL once in each browser and accept it; in production use "
        "Caddy or certbot. The doctor trusts the authorities in the file that SSL_CERT_FILE names.",
        20: "Serve the whole chain (fullchain.pem), with the intermediate certificates. If the authority is your own, "
        "name its file in SSL_CERT_FILE.",
        62: "It was made for another name: get one for the name in the URL.",
        64: "It was made for another address: get one for the address in the URL.",
    }
    advice[19] = advice[21] = advice[20]
    return failed(
        "tls", tried, f"browsers refuse it: {shown(reason)}", advice.get(code, "Get one that browsers trust.")
    )


def no_tls(tried: str, reason: str) -> Finding:
    advice = "Ask by http://, or let the proxy serve TLS on this port."
    return failed("tls", tried, f"no TLS is spoken there: {shown(reason)}", advice)


# --- HTTP -------------------------------------------------------------------------------------------------------------

PUBLIC_URL: Final = (
    "Start the server with --public-url https://YOUR.HOST. Or let the proxy pass Host and X-Forwarded-Proto as they "
    "came; the server believes proxies of --trusted-proxy."
)


class SessionInfo(Struct):
    """What discovery says; a static answer may leave the last two out."""

    url: str
    udp: str
    state: str
    session: str | None = None
    ticket: str | None = None


def by_status(status: int) -> str:
    """What to do about an HTTP status, of an upgrade too."""
    return {
        101: "",
        200: "Let the proxy pass Upgrade and Connection on: to the server this was no WebSocket.",
        401: "The ticket was refused: do several servers answer under this name? They do not know each other's.",
        403: "Pages of that site are not let in: start the server with --origin and the site.",
        404: "No session server is there: does the proxy pass all paths on, /session/ and /.wrtc/ too?",
        400: "Was the WebSocket upgrade changed on its way? A proxy must pass Upgrade and Connection on.",
        426: "Let the proxy pass Upgrade and Connection on: to the server this was no WebSocket.",
        429: "Too many came from this address: --connections-per-address, --new-rooms-per-address. Behind a proxy: "
        "does it set X-Forwarded-For?",
        502: "The proxy does not reach the server: is it running, and at the port where the proxy looks?",
        503: "The server is full or stopping: see --max-clients, or try again.",
        504: "The proxy does not reach the server: is it running, and at the port where the proxy looks?",
    }.get(status, "See the log of the server, and that of the proxy.")


def judge_discovery(tried: str, asked: str, told: SessionInfo) -> Finding:
    """`asked` is the origin that was asked. A site may keep discovery elsewhere, so another host is no fault by itself;
    one that pages cannot or may not reach is."""
    if told.state != "Ready":
        return failed("discovery", tried, f"the server is {shown(told.state)!r}", "Wait, or raise its limits.")
    home = urlsplit(asked)
    for name, url in (("url", told.url), ("udp", told.udp), ("session", told.session)):
        if url is None:
            continue
        parts, seen = split(url), f"{name} is {shown(url)}"
        if parts is None:
            return failed("discovery", tried, f"{seen}, which is no address", PUBLIC_URL)
        if home.scheme == "https" and parts.scheme in {"http", "ws"}:
            seen += ": browsers let no page that came by https connect there"
            return failed("discovery", tried, seen, PUBLIC_URL)
        if is_private(str(parts.hostname)) and not is_private(str(home.hostname)):
            return failed("discovery", tried, f"{seen}, which is reached from its own network only", PUBLIC_URL)
    hosts = [urlsplit(url).netloc for url in (told.url, told.udp)]
    if hosts[0] != hosts[1]:
        advice = "Let both be the same: one server serves both."
        seen = f"Ready, but WebSocket and UDP are at two hosts, {shown(hosts[0])} and {shown(hosts[1])}"
        return warning("discovery", tried, seen, advice)
    elsewhere = "" if hosts[0] == home.netloc else f", and sends its clients to {shown(hosts[0])}"
    return ok("discovery", tried, f"Ready{elsewhere}")


def lacks(headers: Any, origin: str, wanted: str) -> str:
    """What a page of `origin` would miss in an answer; `wanted` are the headers that it will send. Empty if nothing."""
    allowed = headers.get("Access-Control-Allow-Origin", "")
    if allowed not in {"*", origin}:
        return f"Access-Control-Allow-Origin is {shown(allowed) or 'missing'}"
    named = {name.strip().lower() for name in headers.get("Access-Control-Allow-Headers", "").split(",")}
    missing = [name for name in wanted.split(",") if name and name not in named]
    return f"Access-Control-Allow-Headers lacks {' and '.join(missing)}" if missing else ""


def skew(date: str, now: float) -> float | None:
    """Seconds that the clock behind a Date header (RFC 9110 §6.6.1) is ahead of `now`, the wall clock."""
    try:
        return parsedate_to_datetime(date).timestamp() + 0.5 - now  # cut to whole seconds
    except (TypeError, ValueError, OverflowError):
        return None


# --- links ------------------------------------------------------------------------------------------------------------

FIREWALL: Final = (
    "Open the UDP port in the firewall, of the provider too; in a container publish it as /udp. An HTTP proxy does not "
    "pass it on. Without it all works, by WebSocket alone."
)


def not_joined(check: str, tried: str, code: int, reason: str) -> Finding:
    """`code` is a close code, or an HTTP status."""
    if code < 1000:
        return failed(check, tried, f"{code} {shown(reason)}", by_status(code))
    advice = {
        1002: "Something else serves WebSockets there: does the proxy pass /session/ to the session server?",
        1011: "The room's code cannot be loaded: see the server's log.",
        1013: "The room or the server is full.",
        1015: "The certificate is not that of discovery: see the line about TLS.",
    }.get(code, "Does the proxy pass WebSockets on, and does its path to the server stay open?")
    return failed(check, tried, f"{shown(reason)} ({code})", advice)


def judge_round_trips(tried: str, took: Sequence[float]) -> Finding:
    middle, unrest, worst = statistics.median(took), jitter(took), max(took)
    seen = f"{ms(middle)} there and back, jitter {ms(unrest)}, worst {ms(worst)}"
    figures = {"seconds": middle, "jitter": unrest, "worst": worst}
    if middle > SLOW:
        return warning("round trip", tried, seen, "Players feel that: a server nearer to them helps.", **figures)
    if unrest > UNSTEADY:
        return warning(
            "round trip", tried, seen, "A busy line or computer, here or there; wireless does it.", **figures
        )
    return ok("round trip", tried, seen, **figures)


def judge_candidate(host: str, port: int, outcome: float | str | None, *, is_public: bool, is_only: bool) -> Finding:
    """`outcome`: seconds until a data channel to this address was open; what was seen instead; None if this computer
    has no way there. `is_public`: the server is; `is_only`: no other address works."""
    tried = f"a data channel to {f'[{host}]' if ':' in host else host}, port {port}"
    if outcome is None:
        return skipped("udp", tried, "not tried: this computer has no way to addresses of that kind")
    if isinstance(outcome, str):
        return (failed if is_only else warning)("udp", tried, outcome, FIREWALL)
    seen = f"open after {ms(outcome)}"
    if is_public and is_private(host):
        advice = "Others cannot use this address. It does no harm beside one that they can."
        return warning("udp", tried, f"{seen}, from here: it is a private address", advice, seconds=outcome)
    return ok("udp", tried, seen, seconds=outcome)


def only_private(hosts: Iterable[str], public: str) -> Finding:
    """`public` is an address of the server's name."""
    tried = f"the addresses that the server announces for UDP: {', '.join(hosts)}"
    seen = "all are private, and the server is public: nobody outside its own network reaches them"
    return failed("udp", tried, seen, f"Start the server with --announce-ip {public}, once more for IPv6.")


def judge_datagrams(tried: str, took: Sequence[float], count: int) -> Finding:
    """`took`: seconds on the way of those that came, of `count`."""
    loss = 1 - len(took) / count
    if not took:
        return failed("datagrams", tried, "none arrived, though the channels opened", FIREWALL, loss=1.0)
    middle, unrest = statistics.median(took), jitter(took)
    seen = f"{100 * loss:.0f} % lost, {ms(middle)} on their way, jitter {ms(unrest)}"
    figures = {"loss": loss, "seconds": middle, "jitter": unrest, "worst": max(took)}
    if loss > LOSSY:
        advice = "The line loses packets: a busy network, wireless, or a firewall that limits UDP."
        return warning("datagrams", tried, seen, advice, **figures)
    if unrest > UNSTEADY:
        advice = "A busy line or computer, here or there: smooth what you draw over twice the jitter."
        return warning("datagrams", tried, seen, advice, **figures)
    return ok("datagrams", tried, seen, **figures)


def judge_clocks(tried: str, offset: float, error: float, ahead: float | None) -> Finding:
    """`offset` of the server's monotonic clock from ours, known to ± `error`; `ahead`: by how much its wall clock
    is ahead, None if unknown."""
    known = f"room.time is known to ± {ms(error)}"
    figures = {"offset": offset, "error": error} | ({} if ahead is None else {"skew": ahead})
    if ahead is None:
        return ok("clock", tried, known, **figures)
    if abs(ahead) <= SKEW:
        return ok("clock", tried, f"{known}; the wall clocks agree to {max(1, abs(ahead)):.0f} s", **figures)
    seen = f"the server's wall clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} ours"
    return failed("clock", tried, seen, "Tokens are refused. Set both by NTP: timedatectl set-ntp true", **figures)


# --- words and numbers ------------------------------------------------------------------------------------------------


def shown(text: str, most: int = 160) -> str:
    """What a stranger wrote, on one line and without anything that a terminal might obey."""
    plain = "".join(one if one.isprintable() else " " for one in text[: 4 * most])
    plain = " ".join(plain.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f} ms"


def jitter(took: Sequence[float]) -> float:
    """Mean difference of neighbours."""
    return statistics.fmean(abs(a - b) for a, b in zip(took, took[1:], strict=False)) if len(took) > 1 else 0.0


def split(url: str) -> SplitResult | None:
    """None if no client could connect there."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def is_private(host: str) -> bool:
    """As far as its spelling tells."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
