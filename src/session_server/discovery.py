"""`GET /session/{slug}`: where a room is, from the settings and the request alone.

The function for sites that answer it at their CDN (deploy/cdn/session.mjs) is held to the same vectors.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from .config import Config
from .protocol import slug_from_path, slug_to_path

HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
CODESPACES: Final = re.compile(r"(?P<name>[a-z0-9-]+)-[0-9]+\.(?P<rest>(?:preview\.)?app\.github\.dev)")


def discover(config: Config, scheme: str, host: str, target: str) -> dict[str, str]:
    """What a page is told: `url` and `udp`, one host for both; `session`, where a WebSocket joins; `room`, the slug.

    `scheme` is the one that the client used, `host` its Host header, `target` all that follows in the request line.
    Of the query only `forceProduction=1` counts. Raises ValueError with a line for the sender.
    """
    path, _, query = target.partition("?")
    slug = slug_from_path(path.removeprefix("/session/"))
    base = base_url(config, scheme, host, first(query, "forceProduction") == "1")
    path = slug_to_path(slug)
    url = base + path if config.isolate_classic else base
    return {"url": url, "udp": url, "session": "ws" + base.removeprefix("http") + path, "room": slug}


def base_url(config: Config, scheme: str, host: str, force_production: bool) -> str:
    """Scheme and host of this server, as those reach it who asked at `host`. Raises ValueError."""
    if not HOST.fullmatch(host):
        raise ValueError("Host header is no host name")
    if config.public_url and (force_production or not config.development):
        return config.public_url.rstrip("/")
    name = re.sub(r":[0-9]+$", "", host)
    if name == config.local_name:
        return f"https://session.{name}"
    if codespace := CODESPACES.fullmatch(name):  # the port is a part of the name there, and this is ours
        return f"https://{codespace['name']}-{config.port or 8889}.{codespace['rest']}"
    return f"{scheme}://{host}"


def first(query: str, name: str) -> str | None:
    return next((value for key, value in parse_qsl(query, keep_blank_values=True) if key == name), None)
