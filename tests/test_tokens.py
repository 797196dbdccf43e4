"""Who a token says somebody is: what is believed, and the many things that are not."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
import warnings
from base64 import urlsafe_b64encode
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from playing import Log
from session_server.config import Config, ConfigError
from session_server.protocol import Refused
from session_server.room import User
from session_server.tokens import LEEWAY, Verifier

SECRET = "a secret of at least thirty-two bytes"
STEADY = settings(derandomize=True, deadline=None, max_examples=150)


def verifier(**more: Any) -> Verifier:
    return Verifier(Config(**more), Log([]))


def claims(**more: Any) -> dict[str, Any]:
    """Claims of a good token; None leaves one out."""
    good = {"sub": "user-1", "handle": "@ada", "exp": time.time() + 60}
    return {key: value for key, value in (good | more).items() if value is not None}


def sign(payload: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(payload, key, algorithm, headers)


def part(value: Any) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_without_a_secret_nobody_is_checked_and_nobody_is_a_user() -> None:
    assert verifier().verify("anything") is None


def test_a_good_token_names_a_user() -> None:
    payload = claims(role="dj")
    assert verifier(auth_secret=SECRET).verify(sign(payload)) == User("user-1", "@ada", payload)


@pytest.mark.parametrize("handle", [None, 7, {"a": 1}, ["@ada"]])
def test_a_handle_is_a_string_or_nothing(handle: Any) -> None:
    user = verifier(auth_secret=SECRET).verify(sign(claims(handle=handle)))
    assert user is not None and user.handle is None


@pytest.mark.parametrize(
    "payload",
    [
        claims(sub=None), claims(sub=""), claims(sub=7), claims(sub={"a": 1}), claims(exp=None), claims(exp=0),
        claims(exp=1), claims(exp="soon"), claims(exp=[1]), {"exp": -LEEWAY - 5}, {"nbf": LEEWAY + 60}, claims(iat="x"),
    ],
    ids=count(),
)  # fmt: skip
def test_a_token_without_user_or_out_of_time_is_refused(payload: dict[str, Any]) -> None:
    if "handle" not in payload:  # seconds from now, and not from when this file was read
        payload = claims(**{name: time.time() + seconds for name, seconds in payload.items()})
    with pytest.raises(Refused, match="^token refused: "):
        verifier(auth_secret=SECRET).verify(sign(payload))


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -LEEWAY + 20), ("nbf", LEEWAY - 20)])
def test_clocks_may_differ_a_little(claim: str, seconds: float) -> None:
    assert verifier(auth_secret=SECRET).verify(sign(claims(**{claim: time.time() + seconds}))) is not None


def test_the_audience_is_not_ours_to_judge() -> None:
    assert verifier(auth_secret=SECRET).verify(sign(claims(aud="other"))) is not None


@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "a.b.c", "é", "\udcff", "null", "\x00" * 9,
        sign(claims(), "another secret of at least thirty-two bytes"),
        sign(claims()).rpartition(".")[0] + "." + "A" * 43,
        sign(claims()) + ".x",
        f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims())}.",
        f"{part({'alg': 'None'})}.{part(claims())}.",
        f"{part({'typ': 'JWT'})}.{part(claims())}.",
        f"{part([])}.{part(claims())}.x",
        f"{part({'alg': 'HS256'})}.{part([1])}.x",
        sign(claims(), SECRET * 2, "HS512"),
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_not_signed_by_us_is_refused(token: str) -> None:
    with pytest.raises(Refused, match="^token refused: "):
        verifier(auth_secret=SECRET).verify(token)


@given(st.text(max_size=80) | st.text("eyJ.abc{}=-_", max_size=80))
@STEADY
def test_any_text_is_a_user_or_refused(token: str) -> None:
    with pytest.raises(Refused):
        verifier(auth_secret=SECRET).verify(token)


# --- published keys ---------------------------------------------------------------------------------------------------


RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PUBLISHED = {
    "keys": [
        json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "r", "use": "sig"},
        json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key())) | {"kid": "e"},
        json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(ED.public_key())) | {"kid": "d"},
    ]
}


def published(folder: Path, keys: Any = PUBLISHED) -> Verifier:
    source = folder / "keys.json"
    source.write_text(keys if isinstance(keys, str) else json.dumps(keys))
    found = verifier(auth_jwks=str(source))
    asyncio.run(found.start())
    return found


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "r"), (RSA, "PS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_token_signed_with_a_published_key_names_a_user(tmp_path: Path, key: Any, algorithm: str, kid: str) -> None:
    user = published(tmp_path).verify(sign(claims(), key, algorithm, kid=kid))
    assert user is not None and (user.id, user.handle) == ("user-1", "@ada")


def test_a_single_key_needs_no_name(tmp_path: Path) -> None:
    nameless = {key: value for key, value in PUBLISHED["keys"][1].items() if key != "kid"}
    assert published(tmp_path, {"keys": [nameless]}).verify(sign(claims(), EC, "ES256")) is not None


def pem() -> bytes:
    return RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hmac_with(key: bytes, header: dict[str, Any]) -> str:
    """What PyJWT refuses to sign: HMAC with a public key for a secret (the classic confusion of algorithms)."""
    body = f"{part(header)}.{part(claims())}"
    return f"{body}.{urlsafe_b64encode(hmac.new(key, body.encode(), hashlib.sha256).digest()).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    "token",
    [
        sign(claims(), RSA, "RS256", kid="e"),
        sign(claims(), RSA, "RS256", kid="unknown"),
        sign(claims(), RSA, "RS256"),
        sign(claims(), ec.generate_private_key(ec.SECP256R1()), "ES256", kid="e"),
        sign(claims(), SECRET, "HS256", kid="r"),
        hmac_with(pem(), {"alg": "HS256", "kid": "r"}),
        hmac_with(b"", {"alg": "none", "kid": "r"}),
        f"{part({'alg': 'none', 'kid': 'r'})}.{part(claims())}.",
        f"{part({'alg': 'RS256', 'kid': ['r']})}.{part(claims())}.x",
        f"{part({'alg': 'RS256', 'kid': None})}.{part(claims())}.x",
        sign(claims(sub=None), EC, "ES256", kid="e"),
        sign(claims(exp=1), EC, "ES256", kid="e"),
        "nonsense",
    ],
    ids=range(13),
)
def test_what_no_published_key_signed_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(Refused, match="^token refused: "):
        published(tmp_path).verify(token)


@pytest.mark.parametrize(
    "keys",
    [
        "", "{", "[]", "null", "7", '"keys"', {}, {"keys": []}, {"keys": 7}, {"keys": [7]}, {"keys": [{"kty": "XYZ"}]},
        {"keys": [{"kid": "r"}]},
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_cannot_be_used_are_a_config_error(tmp_path: Path, keys: Any) -> None:
    with pytest.raises(ConfigError, match="^--auth-jwks .*keys.json cannot be used: ") as error:
        published(tmp_path, keys)
    assert "\n" not in str(error.value)


def test_a_missing_file_of_keys_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        asyncio.run(verifier(auth_jwks=str(tmp_path / "nowhere.json")).start())


def test_a_file_of_keys_that_is_not_utf8_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be used"):
        asyncio.run(verifier(auth_jwks=str(tmp_path / "keys.json")).start())


def test_a_short_secret_is_warned_of_once_and_not_at_each_join() -> None:
    """RFC 7518 §3.2: a key of HS256 has at least 32 bytes; a shorter one can be guessed from a single token."""
    warned: list[dict[str, Any]] = []
    log = SimpleNamespace(warning=lambda event, **fields: warned.append(fields))
    verifier = Verifier(Config(auth_secret="hunter2"), log)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = jwt.encode({"sub": "ada", "exp": time.time() + 60}, "hunter2", algorithm="HS256")
    for _ in range(2):
        assert verifier.verify(token) is not None
    assert warned == [{"bytes": 7, "expected": 32}]
