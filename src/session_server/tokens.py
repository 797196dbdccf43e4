"""Who a user's token says they are: JWTs signed with a shared secret or with keys that somebody publishes (JWKS)."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any, Final

import jwt
from aiohttp import ClientError, ClientSession, ClientTimeout

from .config import Config, ConfigError
from .protocol import Refused
from .room import User

SAFE_SECRET: Final = 32  # bytes (RFC 7518 §3.2)
LEEWAY: Final = 30  # seconds that clocks may differ
ALGORITHMS: Final = [
    "RS256",
    "RS384",
    "RS512",
    "ES256",
    "ES384",
    "PS256",
    "EdDSA",
]  # for published keys: never HS*, never none


class Verifier:
    """`sub` is the user, `handle` the verified handle. Without a secret or keys none is checked: nobody is a user."""

    def __init__(self, config: Config, log: Any) -> None:
        self._secret = config.auth_secret
        self._source = config.auth_jwks
        self._keys: dict[str, jwt.PyJWK] = {}
        self._log = log
        if self._secret is not None and len(self._secret.encode()) < SAFE_SECRET:
            log.warning("a short --auth-secret can be guessed", bytes=len(self._secret.encode()), expected=SAFE_SECRET)

    async def start(self) -> None:
        """Reads the published keys. Raises ConfigError."""
        if self._source is not None:
            try:
                keys = jwt.PyJWKSet.from_json(await read(self._source))
            except (OSError, ClientError, TimeoutError, ValueError, AttributeError, TypeError, jwt.PyJWTError) as error:
                raise ConfigError(f"--auth-jwks {self._source} cannot be used: {error}") from None
            self._keys = {key.key_id or "": key for key in keys.keys}

    def verify(self, token: str) -> User | None:
        """Raises Refused if the token is bad; None if tokens are not checked here."""
        if self._secret is None and self._source is None:
            return None
        try:
            claims = self._decode(token)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise Refused(f"token refused: {error}") from None
        subject, handle = claims.get("sub"), claims.get("handle")
        if not isinstance(subject, str) or not subject:
            raise Refused("token refused: it names no user (sub)")
        return User(subject, handle if isinstance(handle, str) else None, claims)

    def _decode(self, token: str) -> dict[str, Any]:
        options: Any = {"require": ["exp", "sub"], "verify_aud": False}
        if self._secret is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a short secret, as we have said so once
                return jwt.decode(token, self._secret, algorithms=["HS256"], options=options, leeway=LEEWAY)
        name = str(jwt.get_unverified_header(token).get("kid", ""))
        key = self._keys.get(name)
        if key is None:
            raise ValueError("signed with an unknown key")
        return jwt.decode(token, key.key, algorithms=ALGORITHMS, options=options, leeway=LEEWAY)


async def read(source: str) -> str:
    if source.startswith(("http://", "https://")):
        async with ClientSession(timeout=ClientTimeout(total=10)) as session, session.get(source) as response:
            response.raise_for_status()
            return await response.text()
    return await asyncio.to_thread(Path(source).read_text)
