"""A conversation; who comes late reads what was said before."""

import time
from typing import Annotated, Any

from msgspec import Meta

from session_server import Client, Refused, Room, on

Text = Annotated[str, Meta(min_length=1, max_length=500)]
Name = Annotated[str, Meta(min_length=1, max_length=24)]


class Chat(Room):
    keep = ("history", "names")

    def on_create(self) -> None:
        self.history: list[dict[str, Any]] = []  # the last 100: id, name, text, time in seconds since 1970
        self.names: dict[int, str] = {}  # client id → name

    def on_join(self, client: Client) -> None:
        name = (client.name or f"guest {client.id}")[:24]
        self.names[client.id] = name if name not in self.names.values() else f"{name[:18]} {client.id}"
        client.send("history", self.history)

    @on("say", rate=5)
    def say(self, client: Client, text: Text) -> None:
        said = {"id": client.id, "name": self.names[client.id], "text": text, "time": time.time()}
        self.history = [*self.history[-99:], said]
        self.broadcast("said", said)

    @on("rename", rate=1)
    def rename(self, client: Client, name: Name) -> str:
        if name in self.names.values() and self.names[client.id] != name:
            raise Refused(f"somebody here is called {name} already")
        self.names[client.id] = name
        return name

    def on_leave(self, client: Client, reason: str) -> None:
        self.names.pop(client.id, None)
