"""Every frame comes back as it was: what the conformance suite asks of a server."""

from session_server import Client, Room


class Lobby(Room):
    raw = True
    max_message = 64 * 1024 * 1024

    def on_raw(self, client: Client, data: str | bytes) -> None:
        client.send_raw(data)
