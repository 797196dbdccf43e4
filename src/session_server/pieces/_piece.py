"""Everybody's dots on one page. Save this file while you play: it runs at once, and nobody is disconnected."""

from session_server import Client, Room, on


class Piece(Room):
    keep = ("dots",)  # survives an edit of this file

    def on_create(self) -> None:
        self.dots: list[list[float]] = []  # each [x, y], from 0 to 1

    def on_join(self, client: Client) -> None:
        client.send("dots", self.dots)

    @on("dot", rate=20)
    def dot(self, client: Client, place: tuple[float, float]) -> None:
        self.dots = [*self.dots[-199:], [round(min(max(p, 0.0), 1.0), 3) for p in place]]
        self.broadcast("dots", self.dots)
