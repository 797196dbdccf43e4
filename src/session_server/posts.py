"""What publishers send by `POST`, as messages: for one room, or for all classic pages. Who may is not judged here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType

from .protocol import Message, check_type, encode_json, slug_from_path

EVERYBODY: Final = "everybody"  # the topic of what all classic pages are told; lobbies listen to it
MAX_LINE: Final = 16 * 1024  # characters of a build's log


class Posted(Struct):
    """The body of `POST /session/{slug}/messages`."""

    type: str
    content: Raw | UnsetType = UNSET
    id: str | UnsetType = UNSET


class Post(NamedTuple):
    slug: str | None  # None: everybody
    message: Message


def takes_posts(path: str) -> bool:
    """Whether anything is posted to this path, which is without the query."""
    return path in TO_EVERYBODY or (path.startswith("/session/") and path.endswith("/messages"))


def read_post(path: str, body: bytes, at: int) -> Post:
    """`at` in milliseconds since 1970. Raises ValueError with a line for the sender."""
    if path in TO_EVERYBODY:
        return Post(None, TO_EVERYBODY[path](body, at))
    slug = slug_from_path(path.removeprefix("/session/").removesuffix("/messages"))
    try:
        posted = msgspec.json.decode(body, type=Posted)
    except (DecodeError, RecursionError) as error:
        raise ValueError(f"body is no message: {error}") from None
    check_type(posted.type)
    return Post(slug, Message(posted.type, posted.content, 0 if posted.id is UNSET else posted.id))


def read_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (DecodeError, RecursionError) as error:
        raise ValueError(f"body is not JSON: {error}") from None


def reload(body: bytes, at: int) -> Message:
    """The body goes on as it is: `{"piece": "*refresh*"}`."""
    return Message("reload", Raw(encode_json(read_json(body))), "pieces")


def jump(body: bytes, at: int) -> Message:
    piece = read_json(body)
    if not isinstance(piece, dict) or not isinstance(piece.get("piece"), str):
        raise ValueError('body has no piece, expected {"piece": "…"}')
    return Message("jump", Raw(encode_json({"piece": piece["piece"]})), "pieces")


def build_log(body: bytes, at: int) -> Message:
    """A line of text, or the same in JSON, bare or as `line`."""
    try:
        line = read_json(body)
    except ValueError:
        line = body.decode("utf-8", "replace")
    line = line.get("line") if isinstance(line, dict) else line
    if not isinstance(line, str) or len(line) > MAX_LINE:
        raise ValueError(f"body is no line of at most {MAX_LINE} characters")
    return Message("build:log", Raw(encode_json({"line": line, "timestamp": at})))


def build_status(body: bytes, at: int) -> Message:
    status = read_json(body)
    if not isinstance(status, dict):
        raise ValueError("body is no object")
    return Message("build:status", Raw(encode_json(status | {"timestamp": at})))


TO_EVERYBODY: Final[dict[str, Callable[[bytes, int], Message]]] = {
    "/reload": reload, "/jump": jump, "/build-stream": build_log, "/build-status": build_status,
}  # fmt: skip
