"""The lobby: the room of all pages that come without a slug, as existing pages expect it. On the public API alone.

Worlds, code channels and instruments are in the files beside it; here is what concerns all: where people are, who they
have proved to be, what is told to everybody, and the tools of development. With `--isolate-classic` each slug has a
lobby of its own, and what crosses rooms goes by topics. To change it, subclass it in a `lobby.py` of your own.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from msgspec import UNSET, Meta, Raw, Struct

from session_server import Client, Message, Refused, on
from session_server.pieces._code import CodeChannels
from session_server.pieces._studio import Studio
from session_server.pieces._worlds import KEEP_ALIVE, Handle, Worlds

EVERYBODY: Final = "everybody"  # the topic of what all pages of the server are told: {type, content, id}
SCREAM_EVERY: Final = 2.0  # seconds between two that a room shows, whoever screams
MAX_SCREAM: Final = 500  # characters
MAX_LOGGED: Final = 2000  # characters of JSON
MAX_PATH: Final = 512  # bytes of JSON
NOTHING: Final = Raw(b'""')

Word = Annotated[str, Meta(max_length=32)]


class Place(Struct):
    """`location:broadcast`: a label and where it is, both as the page says."""

    handle: Handle
    slug: Annotated[str, Meta(min_length=1, max_length=128)]


class Login(Struct):
    """What else is in it (a user's id, a handle) proves nothing."""

    token: str | None = None


class Tool(Struct):
    """`identify`: an editor, for instance `vscode`."""

    type: Word


class Lobby(Worlds, CodeChannels, Studio):
    """All types that nothing here names are relayed."""

    max_message = 1024 * 1024  # bytes; `code` carries whole sources
    relay = True
    server_only: ClassVar[tuple[str, ...]] = (
        *Worlds.server_only, "vscode-extension:reload", "vscode:jump", "jump", "identified",
        "dev:identity", "build:*", "module:bundle", "module:response", "module:status", "daw:joined", "notepat:midi",
        "notepat:midi:subscribed", "notepat:midi:unsubscribed",
    )  # fmt: skip
    elects_host = True

    def on_create(self) -> Any:
        self.editors: dict[int, Client] = {}
        self._screamed = float("-inf")
        self.subscribe(EVERYBODY, self._tell)
        return super().on_create()

    def on_join(self, client: Client) -> None:
        if self.config.development and not client.beside and client.links[0].dialect.name == "classic":
            client.send("dev:identity", identity(client), id="dev")

    def on_leave(self, client: Client, reason: str) -> Any:
        self.editors.pop(client.id, None)
        return super().on_leave(client, reason)

    # --- who is where -------------------------------------------------------------------------------------------------

    @on("location:broadcast", rate=5)
    def locate(self, client: Client, place: Place) -> None:
        """Shown in presence; ghosts of this handle hear of it, in whichever room."""
        if not (place.handle.isprintable() and place.slug.isprintable()):
            raise Refused("handle or slug has characters that are not printable")
        if place.slug != KEEP_ALIVE:
            client.introduce(place.handle, {"slug": place.slug})
        user = client.user.id if client.user is not None else None
        self.publish(f"slug:{place.handle}", {"slug": place.slug, "user": user})

    @on("login", rate=1)
    def login(self, client: Client, content: Login) -> None:
        """A token that this server verifies. A user's id without one is a claim, and claims give no rights."""
        user = self.verify(content.token) if content.token is not None else None
        if user is not None:
            client.identify(user)

    @on("logout:broadcast:subscribe")
    def await_logout(self, client: Client) -> None:
        """Pages ask for it, and are told nothing (upstream neither)."""

    # --- what all are told --------------------------------------------------------------------------------------------

    @on("scream", rate=0.1)
    def scream(self, client: Client, text: str) -> None:
        """To all pages of the server: for verified users, and in development for anybody."""
        if client.user is None and not self.config.development:
            raise Refused("who screams must have logged in with a token")
        if len(text) > MAX_SCREAM:
            raise Refused(f"screams {len(text)} characters, expected at most {MAX_SCREAM}")
        self.publish(EVERYBODY, {"type": "scream", "content": self.clean(text), "id": "screamer"})

    def _tell(self, told: dict[str, Any]) -> None:
        if told["type"] == "scream":
            if self.now - self._screamed < SCREAM_EVERY:
                return
            self._screamed = self.now
        if told["type"] == "jump":
            self.broadcast("vscode:jump", told["content"], to=self.editors.values(), id="vscode")
        self.broadcast(told["type"], told["content"], id=told["id"])

    def on_post(self, message: Message) -> None:
        """Of a publisher with the admin token."""
        if message.type == "code" and self.push_code(message.content):
            return
        if message.type == "scream":
            self.publish(EVERYBODY, {"type": "scream", "content": message.content, "id": "screamer"})
        else:
            self.broadcast(message.type, message.content, id=message.id)

    # --- development --------------------------------------------------------------------------------------------------

    @on("identify", rate=1)
    def identify_tool(self, client: Client, tool: Tool) -> None:
        self._only_in_development()
        self.editors[client.id] = client
        client.send("identified", {"type": tool.type, "id": client.id}, id=client.id)

    @on("dev:log", rate=20)
    def log_page(self, client: Client, content: Any) -> None:
        self._only_in_development()
        self.log.info("dev:log", client=client.id, content=repr(content)[:MAX_LOGGED])

    @on("dev-log", rate=20)
    def log_page_too(self, client: Client, content: Any) -> None:
        self.log_page(client, content)

    def _only_in_development(self) -> None:
        if not self.config.development:
            raise Refused("only in development")

    # --- modules: pages load them over HTTP ---------------------------------------------------------------------------

    @on("module:*", rate=20)
    def no_modules(self, client: Client, message: Message) -> None:
        """No file is served here. Told so at once, a page loads it over HTTP instead of waiting."""
        path = message.extra.get("path", NOTHING)
        error = {"path": path if len(path) <= MAX_PATH else NOTHING, "error": "no modules here, load them over HTTP"}
        client.send("module:error", UNSET, id=None, extra=error)

    @on("module:list", rate=1)
    def list_modules(self, client: Client) -> None:
        client.send("module:list", UNSET, id=None, extra={"modules": []})


def identity(client: Client) -> dict[str, Any]:
    """How a page on the network of a developer is called (lib/socket.mjs)."""
    letter = chr(ord("A") + (client.id - 1) % 26)
    host = client.links[0].local
    return {
        "name": f"Device {letter}",
        "letter": letter,
        "host": host,
        "hostIp": host,
        "mode": "LAN Dev",
        "connectionId": client.id,
    }
