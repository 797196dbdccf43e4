"""Code channels of the lobby: the last code of a channel for whoever watches it, in whichever room; slides and audio.

A channel is one of the server, not of a room: what is said in it goes by a topic, and carries a tag instead of an id.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final

from msgspec import DecodeError, Meta, Raw, Struct
from msgspec.json import decode, encode

from session_server import Client, Room, Subscription, on

DEVELOPMENT: Final = "development"  # the tag of code that pages run (lib/socket.mjs)
TAG: Final = "code-channel"  # of all else
COUNTED_WITHIN: Final = 0.05  # seconds for other rooms to say how many watch there
MAX_KEPT: Final = 64  # channels whose code is kept, in a room
MAX_KEPT_BYTES: Final = 4 * 1024 * 1024  # of code, in a room

Name = Annotated[str, Meta(min_length=1, max_length=128)]


class Pushed(Struct, rename={"channel": "codeChannel"}):
    """What a message for a channel says of it, beside what is in it."""

    channel: Name


@dataclass(slots=True, eq=False)
class Channel:
    """A channel, as far as this room has to do with it."""

    ear: Subscription
    viewers: dict[int, Client] = field(default_factory=dict)  # of this room
    code: str | None = None  # the last, as a JSON string
    asks: int = 0  # that wait for other rooms' numbers
    elsewhere: dict[str, int] = field(default_factory=dict)  # room → its viewers, as told since the last ask


class CodeChannels(Room):
    """`code`, `code-channel:*`, `slide`, `audio`."""

    def on_create(self) -> Any:
        self.channels: dict[str, Channel] = {}
        self.watching: dict[int, str] = {}  # client id → channel: one each
        return super().on_create()

    def on_reload(self, old: Any) -> Any:
        """Topics were the old instance's."""
        for name, channel in old.get("channels", {}).items():
            mine = self._channel(name)
            mine.viewers, mine.code = channel.viewers, channel.code
        self.watching = old.get("watching", {})
        return super().on_reload(old)

    def on_leave(self, client: Client, reason: str) -> Any:
        self._unwatch(client)
        return super().on_leave(client, reason)

    @on("code-channel:sub", rate=2)
    def watch(self, client: Client, name: Name) -> None:
        self._unwatch(client)
        channel = self._channel(name)
        channel.viewers[client.id] = client
        self.watching[client.id] = name
        if channel.code is not None:
            client.send("code", channel.code, id=DEVELOPMENT)
        else:
            self._say(name, "wanted")

    @on("code-channel:info", rate=2)
    def info(self, client: Client, name: Name) -> None:
        channel = self._channel(name)
        channel.asks += 1
        self._say(name, "count?")
        self.after(COUNTED_WITHIN, partial(self._counted, client, name, channel))

    def _counted(self, client: Client, name: str, channel: Channel) -> None:
        channel.asks -= 1
        viewers = len(channel.viewers) + sum(channel.elsewhere.values())
        client.send("code-channel:info", {"channel": name, "viewers": viewers})
        self._tidy(name)

    @on("code", rate=10)
    def code(self, client: Client, content: Raw) -> None:
        """Pages parse a JSON string, and run what carries the tag `development`: not everybody's."""
        pushed = bytes(content).decode()
        if pushed.startswith('"'):
            pushed = decode(pushed, type=str)
        name = channel_of(pushed)
        if name is None:
            self.broadcast("code", content, id=client.id)
        else:
            self._say(name, "code", pushed, DEVELOPMENT if self.may_push(client, name) else TAG)

    @on("slide")
    def slide(self, client: Client, content: Raw) -> None:
        self._pass("slide", client, content)

    @on("audio")
    def audio(self, client: Client, content: Raw) -> None:
        self._pass("audio", client, content)

    def _pass(self, type: str, client: Client, content: Raw) -> None:
        name = channel_of(content)
        if name is None:
            self.broadcast(type, content, id=client.id)
        else:
            self._say(name, type, content, TAG)

    def may_push(self, client: Client, name: str) -> bool:
        """With `--code-channels open` everybody may; else whose verified token has a claim `code` that is true, or a
        list with this channel."""
        if self.config.code_channels == "open":
            return True
        claims = client.user.data if client.user is not None else None
        granted = claims.get("code") if isinstance(claims, dict) else None
        return granted is True or (isinstance(granted, list) and name in granted)

    def push_code(self, content: Any) -> bool:
        """Of somebody who may; whether it names a channel."""
        pushed = content if isinstance(content, str) else encode(content).decode()
        name = channel_of(pushed)
        if name is not None:
            self._say(name, "code", pushed, DEVELOPMENT)
        return name is not None

    # --- what rooms say to each other ---------------------------------------------------------------------------------

    def _say(self, name: str, type: str, content: Any = None, tag: str = TAG) -> None:
        self._channel(name)  # or this room would not hear it
        self.publish(f"code-channel:{name}", {"type": type, "content": content, "tag": tag, "room": self.slug})

    def _hear(self, name: str, told: dict[str, Any]) -> None:
        channel, type = self.channels.get(name), told["type"]
        if channel is None:
            return
        if type == "wanted":
            if channel.code is not None:
                self._say(name, "kept", channel.code)
        elif type == "count?":
            channel.elsewhere.clear()
            if told["room"] != self.slug:
                self._say(name, "count", len(channel.viewers))
        elif type == "count":
            if told["room"] != self.slug:
                channel.elsewhere[told["room"]] = told["content"]
        elif type == "kept":
            if channel.code is None:
                self._keep_code(name, channel, told["content"])
                self.broadcast("code", channel.code, to=channel.viewers.values(), id=DEVELOPMENT)
        else:
            if told["tag"] == DEVELOPMENT:
                self._keep_code(name, channel, told["content"])
            self.broadcast(type, told["content"], to=channel.viewers.values(), id=told["tag"])
        self._tidy(name)

    def _keep_code(self, name: str, channel: Channel, code: str) -> None:
        """For those who come later; of too much code, that which was pushed longest ago is forgotten."""
        channel.code = code
        self.channels[name] = self.channels.pop(name)  # now the latest
        kept = [other for other, one in self.channels.items() if one.code is not None]
        size = sum(len(self.channels[other].code or "") for other in kept)
        while len(kept) > MAX_KEPT or size > MAX_KEPT_BYTES:
            oldest = kept.pop(0)
            size -= len(self.channels[oldest].code or "")
            self.channels[oldest].code = None
            self._tidy(oldest)

    def _channel(self, name: str) -> Channel:
        channel = self.channels.get(name)
        if channel is None:
            ear = self.subscribe(f"code-channel:{name}", partial(self._hear, name))
            channel = self.channels[name] = Channel(ear)
        return channel

    def _unwatch(self, client: Client) -> None:
        name = self.watching.pop(client.id, None)
        if name is not None:
            self.channels[name].viewers.pop(client.id, None)
            self._tidy(name)

    def _tidy(self, name: str) -> None:
        """Forgets a channel that nobody here watches, asks for, or has code for."""
        channel = self.channels.get(name)
        if channel is not None and not channel.viewers and channel.code is None and not channel.asks:
            channel.ear.cancel()
            del self.channels[name]


def channel_of(content: Raw | str) -> str | None:
    """The channel that a content names, if it does."""
    try:
        return decode(content, type=Pushed).channel
    except (DecodeError, RecursionError):
        return None
