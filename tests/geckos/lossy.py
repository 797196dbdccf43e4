"""A server and a client in Node on a net that loses datagrams. Says in one line of JSON what arrived.

    unshare --net python tests/geckos/lossy.py PERCENT MESSAGES

In a network namespace of its own, so nobody else's datagrams are lost. Each side sends so many messages that may be
lost, the server a reliable one with every tenth.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from serving import serving

CACHE = Path(__file__).parents[2] / ".cache" / "geckos"
RULES = """
table inet lossy {{
    chain input {{
        type filter hook input priority 0;
        meta l4proto udp numgen random mod 100 < {percent} drop
    }}
}}
"""
ROOM = """
from session_server import Client, Room, on

class Lossy(Room):
    def on_create(self):
        self.moves, self.sent, self.timer = [], 0, None
    @on("move")
    def move(self, client: Client, number: int):
        self.moves.append(number)
        if self.timer is None:
            self.timer = self.every(0.005, self.tick)
    def tick(self):
        if self.sent == MESSAGES:
            self.timer.cancel()
            return
        self.sent += 1
        self.broadcast("snapshot", self.sent, reliable=False)
        if self.sent % 10 == 0:
            self.broadcast("number", self.sent)
    @on("moved")
    def moved(self, client: Client):
        self.every(0.01, lambda: self.sent == MESSAGES and client.send("end"))
"""


def main(percent: int, messages: int) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    node = shutil.which("node") or "node"
    with serving({"lossy": ROOM.replace("MESSAGES", str(messages))}, message_rate=0) as site:
        ticket = site.get("/session/lossy").json["ticket"]
        script = Path(__file__).with_name("lossy.mjs")
        command = [node, script, CACHE, "http://127.0.0.1", str(site.port), ticket, str(messages)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            rooms = site.server.rooms.rooms
            site.until(lambda: "lossy" in rooms and rooms["lossy"].instance.moves)  # from now on datagrams are lost
            subprocess.run(["nft", "-f", "-"], input=RULES.format(percent=percent), text=True, check=True)
            heard, _ = client.communicate(timeout=15)
        sys.stdout.write(json.dumps({**json.loads(heard), "move": rooms["lossy"].instance.moves}) + "\n")


main(*map(int, sys.argv[1:]))
