"""Each setting is a flag and a variable, and a setting that cannot work is one clear line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from ipaddress import ip_network
from typing import Any

import pytest
from click.testing import CliRunner

from session_server import cli
from session_server.config import LIMITS, MAX_LOBBY_MESSAGE, Config, ConfigError, flag_of, flags
from session_server.protocol import origin_allowed

# A value other than the default for each flag: as written, and as read.
SAMPLES: dict[str, tuple[Any, Any]] = {
    "host": ("127.0.0.1", "127.0.0.1"),
    "port": ("9000", 9000),
    "udp_port": ("9001", 9001),
    "pieces": ("my/pieces", "my/pieces"),
    "public_url": ("https://play.example", "https://play.example"),
    "local_name": ("local.example", "local.example"),
    "announce_ip": (("192.0.2.1", "192.0.2.2"), ("192.0.2.1", "192.0.2.2")),
    "trusted_proxy": (("10.0.0.0/8", "::1"), ("10.0.0.0/8", "::1")),
    "tls_cert": ("cert.pem", "cert.pem"),
    "tls_key": ("key.pem", "key.pem"),
    "tls": ("self-signed", "self-signed"),
    "origin": (("https://a.example", "null"), ("https://a.example", "null")),
    "auth_secret": ("s" * 40, "s" * 40),
    "auth_jwks": ("keys.json", "keys.json"),
    "admin_token": ("t" * 40, "t" * 40),
    "drain": ("2.5", 2.5),
    "log_format": ("json", "json"),
    "verbose": (True, True),
    "isolate_classic": (True, True),
    "code_channels": ("token", "token"),
    "engine": ("nats://127.0.0.1", "nats://127.0.0.1"),
    "workers": ("2", 2),
    "message_size": ("1000", 1000),
    "message_rate": ("1.5", 1.5),
    "message_burst": ("7", 7.0),
    "byte_rate": ("1000", 1000.0),
    "byte_burst": ("2000000", 2000000.0),
    "connections_per_address": ("3", 3),
    "peers_per_address": ("4", 4),
    "max_clients": ("5", 5),
    "max_rooms": ("6", 6),
    "new_rooms_per_address": ("8", 8),
}
FLAGS = [name for name, *_ in flags()]


def read(monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What the command line makes of it."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(cli, "run", lambda settings, ready: found.append(settings))
    result = CliRunner().invoke(cli.main, ["serve", *arguments], env=dict(environment), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def as_flags(name: str, written: Any) -> list[str]:
    if written is True:
        return [flag_of(name)]
    return [part for one in ([written] if isinstance(written, str) else written) for part in (flag_of(name), one)]


def as_variable(name: str, written: Any) -> dict[str, str]:
    text = "1" if written is True else written if isinstance(written, str) else " ".join(written)
    return {f"SESSION_SERVER_{name.upper()}": text}


def test_every_setting_is_a_flag_but_what_a_command_decides() -> None:
    assert {field.name for field in fields(Config)} - set(FLAGS) == {"development", "net", "node"}
    assert set(SAMPLES) == set(FLAGS), "a new flag needs a sample here"


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_and_its_variable_say_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, value = SAMPLES[name]
    plain = read(monkeypatch, [], {})
    assert plain[name] != value, "the sample is the default"
    for settings in (
        read(monkeypatch, as_flags(name, written), {}),
        read(monkeypatch, [], as_variable(name, written)),
    ):
        assert settings == plain | {name: value}


@pytest.mark.parametrize(
    "name", [name for name in FLAGS if name not in {"isolate_classic", "tls", "verbose"}]
)  # one value only
def test_a_flag_beats_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, value = SAMPLES[name]
    others = {"code_channels": "open", "log_format": "text"}
    other = others.get(name, "1" if isinstance(written, str) else ("::2",))
    settings = read(monkeypatch, as_flags(name, written), as_variable(name, other))
    assert settings[name] == value


def test_without_flags_it_is_the_default_config(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Config(**read(monkeypatch, [], {})) == Config()


def test_the_port_also_comes_from_PORT_as_hosters_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, [], {"PORT": "7000"})["port"] == 7000
    assert read(monkeypatch, [], {"PORT": "7000", "SESSION_SERVER_PORT": "7001"})["port"] == 7001


@pytest.mark.parametrize("name", FLAGS)
def test_the_help_names_each_flag_and_no_secret(name: str) -> None:
    environment = {f"SESSION_SERVER_{secret}": "hunter2" * 6 for secret in ("AUTH_SECRET", "ADMIN_TOKEN")}
    result = CliRunner().invoke(cli.main, ["serve", "--help"], env=environment)
    assert result.exit_code == 0
    assert re.search(rf"^  (-\w, )?{flag_of(name)}\b", result.output, re.MULTILINE)
    assert "hunter2" not in result.output


@pytest.mark.parametrize("name", ["auth_secret", "admin_token"])
def test_a_secret_is_not_shown_by_accident(name: str) -> None:
    config = Config(**{name: "hunter2" * 6})
    assert "hunter2" not in repr(config) and "hunter2" not in str(config)
    assert [metadata["secret"] for flag, *_, metadata in flags() if flag == name] == [True]


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().port = 1  # type: ignore[misc]
    assert hash(Config()) == hash(Config())


# --- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "seen", "expected"),
    [
        ({"port": 70000}, "--port is 70000", "0 to 65535"),
        ({"port": -1}, "--port is -1", "0 to 65535"),
        ({"udp_port": 65536}, "--udp-port is 65536", "0 to 65535"),
        *[({name: -1}, f"{flag_of(name)} is -1", "or more") for name in LIMITS],
        ({"drain": float("inf")}, "--drain is inf", "0 seconds or more"),
        ({"message_size": float("inf")}, "--message-size is inf", "0 (no limit) or more"),
        *[({name: float("nan")}, f"{flag_of(name)} is nan", "or more") for name in ("message_rate", "drain")],
        ({"message_burst": 0.5}, "--message-burst is 0.5", "at least 1 message"),
        ({"byte_burst": 1000}, "--byte-burst is 1000", f"at least {MAX_LOBBY_MESSAGE}"),
        ({"byte_burst": 2e6, "message_size": 3_000_000}, "--byte-burst is 2e+06", "at least 3000000"),
        ({"tls_cert": "a.pem"}, "--tls-cert and --tls-key", "only one"),
        ({"tls_key": "a.pem"}, "--tls-cert and --tls-key", "only one"),
        ({"tls": "self-signed", "tls_cert": "a.pem", "tls_key": "b.pem"}, "--tls and --tls-cert", "one of them"),
        ({"engine": "nats://127.0.0.1"}, "--engine nats://127.0.0.1", "not yet"),
        ({"workers": 2}, "--workers 2", "not yet"),
        ({"workers": 0}, "--workers 0", "only 1"),
        ({"auth_secret": "x" * 40, "auth_jwks": "y"}, "--auth-secret and --auth-jwks", "one of them"),
        ({"public_url": "play.example"}, "--public-url is 'play.example'", "https://HOST"),
        ({"public_url": "ftp://play.example"}, "--public-url is 'ftp://play.example'", "https://HOST"),
        ({"public_url": "https://play.example/path"}, "--public-url is ", "https://HOST"),
        ({"public_url": "https://play.example?x=1"}, "--public-url is ", "https://HOST"),
        ({"public_url": "https://"}, "--public-url is ", "https://HOST"),
        ({"public_url": "https://["}, "--public-url is ", "https://HOST"),
        ({"public_url": "https://play.example:port"}, "--public-url is ", "https://HOST"),
        ({"origin": ("play.example",)}, "--origin is 'play.example'", "https://HOST"),
        ({"origin": ("*", "https://")}, "--origin is 'https://'", "https://HOST"),
        ({"origin": ("https://[",)}, "--origin is 'https://['", "https://HOST"),
        ({"origin": ("https://play.example/game",)}, "--origin is ", "https://HOST"),
        ({"trusted_proxy": ("10.0.0.0/99",)}, "--trusted-proxy is '10.0.0.0/99'", "10.0.0.0/8"),
        ({"trusted_proxy": ("proxy.example",)}, "--trusted-proxy is 'proxy.example'", "10.0.0.0/8"),
        ({"announce_ip": ("play.example",)}, "--announce-ip is 'play.example'", "address"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_with_what_was_seen_and_expected(
    settings: dict[str, Any], seen: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**settings)
    line = str(error.value)
    assert seen in line and expected in line and "\n" not in line


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 0},
        {"port": 65535, "udp_port": 0},
        {"message_rate": 0, "message_burst": 0},
        {"byte_rate": 0, "byte_burst": 1},
        {"byte_burst": MAX_LOBBY_MESSAGE},
        {"message_size": 0},
        {"public_url": "http://localhost:8889/"},
        {"public_url": "https://[2001:db8::1]:443"},
        {"origin": ("*", "null", "https://a.example:8443", "http://localhost")},
        {"trusted_proxy": ()},
        {"trusted_proxy": ("10.1.2.3/8", "2001:db8::/32")},
        {"announce_ip": ("192.0.2.1", "2001:db8::1")},
        {"tls_cert": "a.pem", "tls_key": "b.pem"},
        {"tls": "self-signed"},
        *[{name: 0} for name in LIMITS if name != "message_burst"],
    ],
)
def test_settings_that_work(settings: dict[str, Any]) -> None:
    config = Config(**settings)
    assert all(getattr(config, name) == value for name, value in settings.items())


def test_proxies_are_networks() -> None:
    assert Config(trusted_proxy=("10.1.2.3/8", "::1")).proxies() == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert [str(network) for network in Config().proxies()] == ["127.0.0.0/8", "::1/128"]


@pytest.mark.parametrize(
    "listed",
    [("https://Play.Example",), ("https://play.example/",), ("https://play.example:443",), ("HTTPS://play.example",)],
)
def test_an_origin_as_people_write_it_is_the_one_that_browsers_send(listed: tuple[str, ...]) -> None:
    """Else the operator lists an origin, and its pages are turned away all the same."""
    assert origin_allowed("https://play.example", ("other.example",), Config(origin=listed).origin)


@pytest.mark.parametrize(
    "arguments", [["--port", "70000"], ["--tls-cert", "a.pem"], ["--workers", "2"], ["--engine", "nats://x"]]
)
def test_the_command_says_it_in_one_line_and_exits_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, ["serve", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("session-server: --") and result.output.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--nonsense"], ["--log-format", "xml"], ["--drain", "soon"]])
def test_what_click_refuses_exits_with_2_too(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli.main, ["serve", *arguments]).exit_code == 2
