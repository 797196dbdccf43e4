"""Everybody walks on one field and sees the others' cursors."""

from typing import Any

from session_server import Client, Room, on


class Field(Room):
    tick_rate = 30  # Hz
    grace = 10.0  # seconds a seat is kept after a drop
    keep = ("players",)  # survives a reload of this file
    relay = ("wave",)  # passed to the others as it is

    def on_create(self) -> None:
        self.players: dict[int, dict[str, Any]] = {}  # client id → name, and pos: x and y from 0 to 1

    def on_join(self, client: Client) -> None:
        self.players[client.id] = {"name": client.name, "pos": [0.5, 0.5]}
        client.send("list", self.players)

    @on("move", rate=90)
    def move(self, client: Client, pos: tuple[float, float]) -> None:
        self.players[client.id]["pos"] = [min(max(p, 0.0), 1.0) for p in pos]

    @on("count")
    def count(self, client: Client) -> int:
        return len(self.players)

    def on_tick(self, dt: float) -> None:
        self.broadcast("snapshot", self.players, reliable=False)

    def on_leave(self, client: Client, reason: str) -> None:
        self.players.pop(client.id, None)
