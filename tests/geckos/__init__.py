"""A geckos.io client by hand: it signals over HTTP and speaks on a data channel, by the client side of our own stack.

It says exactly what it is told to say, so tests can be rude. What the real library does is in test_geckos_clients.py.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Mapping
from os import urandom
from typing import Any

from serving import PATIENCE, Answer, Serving, request
from session_server.rtc import datachannel
from session_server.rtc.dtls import Certificate
from session_server.rtc.stun import Address

CERTIFICATE = Certificate.new()
CONNECTIONS = "/.wrtc/v2/connections"


def signal(
    it: Serving, path: str, body: Any = b"", method: str = "POST", headers: Mapping[str, str] | None = None
) -> Answer:
    """One signalling request; `body` is sent as JSON if it is no bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"Host": it.host, "Content-Type": "application/json", "Content-Length": str(len(data))} | dict(headers or {})
    return it.ask(request(path, head, method) + data)[0]


def ticket_for(it: Serving, slug: str) -> dict[str, str]:
    """Headers that name a room."""
    return {"Authorization": it.get(f"/session/{slug}").json["ticket"]}


class GeckosPeer:
    """Is let in, and answers. Nothing happens on its channel but in `until` and `step`."""

    def __init__(self, it: Serving, headers: Mapping[str, str] | None = None, answered: bool = True) -> None:
        self.it = it
        self.headers = dict(headers or {})
        asked = signal(it, CONNECTIONS, headers=headers)
        assert asked.status == 200, f"not let in: {asked}"
        self.status = 0  # of the answer to our answer
        self.heard: list[str | bytes] = []
        self.events: list[datachannel.Event] = []
        self.id = asked.json["id"]
        self.offer = asked.json["localDescription"]["sdp"]
        options = datachannel.Options(CERTIFICATE)
        self.peer, self.answer = datachannel.Peer.join(options, self.offer, urandom, time.monotonic())
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        if answered:
            self.status = self.describe().status

    def describe(self, headers: Mapping[str, str] | None = None) -> Answer:
        """Posts the answer."""
        body = {"type": "answer", "sdp": self.answer}
        return signal(self.it, f"{CONNECTIONS}/{self.id}/remote-description", body, headers=headers)

    # --- the channel --------------------------------------------------------------------------------------------------

    def until(self, true: Callable[[], Any], patience: float = PATIENCE) -> None:
        """Lives until something is so."""
        deadline = time.monotonic() + patience
        while not true():
            now = time.monotonic()
            assert now < deadline, f"it does not come to that; heard {self.heard}, {self.peer.state}"
            self.step(min(self.peer.next_deadline, deadline, now + 0.05) - now)

    def step(self, seconds: float = 0.0) -> None:
        """Sends what is due, and takes what comes within `seconds`."""
        self.transmit()
        if select.select([self.sock], [], [], max(0.0, seconds))[0]:
            data, address = self.sock.recvfrom(2048)
            self.take(data, address)
        now = time.monotonic()
        if self.peer.next_deadline <= now:
            self.peer.run(now)
        self.transmit()

    def take(self, data: bytes, address: Address) -> None:
        self.peer.receive(data, address, time.monotonic())
        for event in self.peer.take_events():
            self.events.append(event)
            if isinstance(event, datachannel.Message):
                self.heard.append(event.data)

    def transmit(self) -> None:
        for datagram, address in self.peer.transmit(time.monotonic()):
            if len(address) == 2:
                self.sock.sendto(datagram, address)

    def open(self) -> GeckosPeer:
        self.until(lambda: self.peer.state == "open")
        return self

    def say(self, data: str | bytes) -> None:
        assert self.peer.send(data, time.monotonic())
        self.transmit()

    def emit(self, event: str, data: Any = None) -> None:
        self.say(json.dumps({event: data}, separators=(",", ":")))

    def hears(self, frame: str | bytes) -> None:
        """Waits for this frame."""
        self.until(lambda: frame in self.heard)

    @property
    def closed(self) -> bool:
        return self.peer.state == "closed"

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self.peer.close(time.monotonic())
            self.transmit()
        self.sock.close()

    def __enter__(self) -> GeckosPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
