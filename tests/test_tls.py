"""TLS: the local certificate that is made and kept, and files that are replaced while people are connected."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from playwright.async_api import Page

from browser import chromium, in_chromium
from serving import V1, Log, Peer, Serving, read_answers, request, serving, upgrade_head
from session_server.config import Config, ConfigError, state_folder
from session_server.tls import (
    RENEWED_BEFORE,
    VALID_FOR,
    Certificate,
    kept_names,
    make,
    names_of,
    self_signed,
)

NOW = datetime.now(UTC)
NAMES = frozenset({"localhost", "127.0.0.1"})


def write(file: Path, *names: str, now: datetime = NOW) -> Path:
    """As a certificate is replaced by careful tools: whole, at once."""
    new = file.with_suffix(".new")
    new.write_bytes(make(list(names), now))
    os.replace(new, file)
    return file


def handshake(it: Serving, trusted: Path, name: str = "localhost") -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=trusted)
    return context.wrap_socket(it.tcp(), server_hostname=name)


def shown(it: Serving) -> bytes:
    """The certificate that a new connection gets, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(it.tcp()) as sock:
        return sock.getpeercert(binary_form=True) or b""


def der(file: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert("-----BEGIN CERT" + file.read_text(encoding="ascii").split("-----BEGIN CERT")[1])


# --- a certificate of our own -----------------------------------------------------------------------------------------


def test_it_is_made_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "session-server"
    file = self_signed(folder, NAMES, NOW)
    first = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    assert self_signed(folder, NAMES, NOW + timedelta(days=100)).read_bytes() == first
    assert self_signed(folder, frozenset({"localhost"}), NOW).read_bytes() == first, "it has that name already"
    assert list(folder.iterdir()) == [file], "nothing is left beside it"


def test_a_missing_name_is_added_to_those_it_had(tmp_path: Path) -> None:
    self_signed(tmp_path, NAMES, NOW)
    file = self_signed(tmp_path, frozenset({"localhost", "192.0.2.7"}), NOW)
    assert kept_names(file, NOW) == NAMES | {"192.0.2.7"}


def test_it_is_renewed_before_its_end(tmp_path: Path) -> None:
    first = self_signed(tmp_path, NAMES, NOW).read_bytes()
    late = NOW + VALID_FOR - RENEWED_BEFORE
    assert self_signed(tmp_path, NAMES, late - timedelta(hours=1)).read_bytes() == first
    assert self_signed(tmp_path, NAMES, late + timedelta(hours=1)).read_bytes() != first


@pytest.mark.parametrize("harm", ["readable by others", "empty", "cut off", "no text", "key of another"])
def test_one_that_cannot_be_used_is_made_anew(tmp_path: Path, harm: str) -> None:
    file = self_signed(tmp_path, NAMES, NOW)
    first = file.read_bytes()
    match harm:
        case "readable by others":
            file.chmod(0o640)
        case "empty":
            file.write_bytes(b"")
        case "cut off":
            file.write_bytes(first[: len(first) // 2])
        case "no text":
            file.write_bytes(b"\x00\xff" * 500)
        case "key of another":
            other = make(["localhost"], NOW)
            file.write_bytes(other[: other.index(b"-----BEGIN CERT")] + first[first.index(b"-----BEGIN CERT") :])
    again = self_signed(tmp_path, NAMES, NOW)
    assert again.read_bytes() != first and kept_names(again, NOW) == NAMES
    assert again.stat().st_mode & 0o777 == 0o600


def test_what_it_vouches_for(tmp_path: Path) -> None:
    made = x509.load_pem_x509_certificate(self_signed(tmp_path, NAMES, NOW).read_bytes())
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca, "who trusts it must not trust what its key might sign"
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert made.not_valid_after_utc - NOW < timedelta(days=398)


def test_the_names_are_those_it_can_be_asked_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk")
    monkeypatch.setattr("session_server.tls.source_to", lambda elsewhere: "192.0.2.7")
    always = {"localhost", "127.0.0.1", "::1", "desk", "desk.local", "local.test", "session.local.test"}
    for settings, more in (
        ({"development": True}, set()),  # listens on loopback
        ({"development": True, "host": "0.0.0.0"}, {"192.0.2.7"}),
        ({}, {"192.0.2.7"}),
        ({"host": "10.0.0.4"}, {"10.0.0.4"}),
        ({"host": "127.0.0.1", "public_url": "https://play.example:8443"}, {"play.example"}),
    ):
        assert names_of(Config(local_name="local.test", **settings)) == always | more, settings


def test_it_is_kept_in_the_state_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, "", "relative"):  # the specification ignores what is not absolute
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        if value is not None:
            monkeypatch.setenv("XDG_STATE_HOME", value)
        assert state_folder() == tmp_path / ".local" / "state" / "session-server"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/other")
    assert state_folder() == Path("/var/other/session-server")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--tls self-signed cannot keep .*/state/x: Not a directory; set XDG_STATE"):
        self_signed(tmp_path / "state" / "x", NAMES, NOW)


# --- files that change ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["uvloop", "asyncio"])
def changing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Serving, Path]]:
    """A server, where it is installed on uvloop, whose certificate is the test's to replace."""
    file = write(tmp_path / "both.pem", "localhost")
    with serving(plain=request.param == "asyncio", tls_cert=str(file), tls_key=str(file), expect_faults=True) as it:
        yield it, file


def refresh(it: Serving) -> None:
    """The server's look, once a second, without the second."""
    it.call(it.server._certificate.refresh)


def test_new_files_are_for_new_connections_and_drop_none(changing: tuple[Serving, Path]) -> None:
    it, file = changing
    before = der(file)
    with handshake(it, file) as sock:
        sock.sendall(upgrade_head("/session/field", it.host, V1))
        peer = Peer(sock)
        assert peer.status == 101 and shown(it) == before
        write(file, "localhost")
        refresh(it)
        assert shown(it) == der(file) != before
        peer.send("session:join", {})
        assert peer.until("session:welcome"), "who was connected still is"
        with handshake(it, file) as other:
            other.sendall(request("/health", {"Host": it.host}))
            assert read_answers(other)[0].status == 200
    assert [event for level, event, _ in it.log.entries if "certificate" in event] == ["the new certificate is in use"]


def test_a_server_looks_by_itself(changing: tuple[Serving, Path]) -> None:
    it, file = changing
    before = der(file)
    write(file, "localhost")
    it.advance(1)
    assert shown(it) == der(file) != before


@pytest.mark.parametrize("harm", ["gone", "half", "of another key", "encrypted"])
def test_a_broken_new_file_is_an_error_in_the_log_and_the_old_one_stays(tmp_path: Path, harm: str) -> None:
    chain, key = write(tmp_path / "chain.pem", "localhost"), tmp_path / "key.pem"
    key.write_bytes(chain.read_bytes())
    log = Log()
    kept = Certificate(chain, key, log)
    before = kept._newest
    match harm:
        case "gone":
            key.unlink()
        case "half":
            chain.write_bytes(chain.read_bytes()[:300])
        case "of another key":
            write(chain, "localhost")
        case "encrypted":
            secret = load_pem_private_key(key.read_bytes(), None)
            key.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    for _ in range(3):
        kept.refresh()
    assert kept._newest is before
    assert [level for level, *_ in log.entries] == ["error"], "said once"
    assert str(chain) in log.entries[0][2]["error"]
    key.write_bytes(write(chain, "localhost").read_bytes())
    kept.refresh()
    assert kept._newest is not before, "the next good ones are taken"


def test_files_that_cannot_be_used_at_the_start_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "none.pem"
    with (
        pytest.raises(ConfigError, match=r"certificate .*none.pem with key .*none.pem cannot be used: .*No such file"),
        serving(tls_cert=str(file), tls_key=str(file)),
    ):
        pass


# --- all of it over TLS -----------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Serving, Path]]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with serving({"field.html": "<!doctype html>field"}, tls="self-signed", development=True) as it:
        yield it, tmp_path / "session-server" / "localhost.pem"


def test_pages_discovery_signalling_and_websockets_on_one_tls_port(secure: tuple[Serving, Path]) -> None:
    it, file = secure
    base = f"https://localhost:{it.port}"
    assert it.server.url == base
    with handshake(it, file) as sock:
        host = {"Host": f"localhost:{it.port}"}
        sock.sendall(request("/session/field?service=undefined", host))
        told = read_answers(sock)[0].json
        assert told["url"] == told["udp"] == base and told["session"] == f"wss://localhost:{it.port}/session/field"
        sock.sendall(request("/field", host))
        assert read_answers(sock)[0].text == "<!doctype html>field"
        sock.sendall(request("/.wrtc/v2/connections", host | {"Content-Length": "0"}, "POST"))
        assert read_answers(sock)[0].json["localDescription"]["type"] == "offer"
        sock.sendall(upgrade_head("/", it.host))
        assert json.loads(Peer(sock).until("connected")["content"])["playerCount"] == 1


@pytest.mark.parametrize("name", ["127.0.0.1", "session.local.aesthetic.computer"])
def test_it_is_good_for_each_name_that_discovery_hands_out(secure: tuple[Serving, Path], name: str) -> None:
    it, file = secure
    with handshake(it, file, name) as sock:
        sock.sendall(request("/health", {"Host": name}))
        assert read_answers(sock)[0].status == 200


@in_chromium
async def test_a_browser_that_accepted_it_plays(secure: tuple[Serving, Path]) -> None:
    """As the classic page connects: it makes `wss:` and `https:` of whatever address it is given."""
    it, _ = secure
    context = await chromium().browser.new_context(ignore_https_errors=True)
    page: Page = await context.new_page()
    await page.goto(f"https://localhost:{it.port}/field")
    said = await page.evaluate("""async () => {
        const told = await (await fetch("/session/field?service=undefined")).json();
        const url = new URL(told.url);
        const offer = await fetch(`https://${new URL(told.udp).host}/.wrtc/v2/connections`, { method: "POST" });
        const socket = new WebSocket(`wss://${url.host}${url.pathname}`);
        const first = await new Promise((resolve) => (socket.onmessage = ({ data }) => resolve(JSON.parse(data))));
        return [told.state, offer.status, first.type];
    }""")
    await asyncio.wait_for(context.close(), 10)
    assert said == ["Ready", 200, "connected"]
