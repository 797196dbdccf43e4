"""The shared outbox against the plain idea: each client has a list of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_server.stream import Stream

STEADY = settings(derandomize=True, deadline=None, max_examples=300)
CLIENTS = ("ada", "bob", "cy", "dot")

clients = st.sampled_from(CLIENTS)
# `""` has no form in this dialect
frames = st.text("abc", max_size=3)
acts = st.lists(
    st.one_of(
        st.tuples(st.just("push"), frames, st.none() | clients),
        st.tuples(st.just("insert"), clients, frames),
        st.tuples(st.just("add"), clients),
        st.tuples(st.just("remove"), clients),
        st.tuples(st.just("flush")),
    ),
    max_size=40,
)


def pack(item: str) -> bytes | None:
    return f"<{item}>".encode() if item else None


class Naive:
    """Every client's frames in a list."""

    def __init__(self) -> None:
        self.pending: dict[str, list[bytes]] = {}
        self.written: list[tuple[str, bytes]] = []
        self.counted = (0, 0)

    def push(self, item: str, exclude: str | None) -> None:
        for client in self.pending:
            if client != exclude:
                self.insert(client, item)

    def insert(self, client: str, item: str) -> None:
        frame = pack(item)
        if frame is not None and client in self.pending:
            self.pending[client].append(frame)

    def add(self, client: str) -> None:
        self.pending[client] = []

    def remove(self, client: str) -> None:
        self.pending.pop(client, None)

    def flush(self) -> tuple[int, int]:
        counts = sum(map(len, self.pending.values())), sum(len(b"".join(f)) for f in self.pending.values())
        self.written += [(client, b"".join(frames)) for client, frames in self.pending.items() if frames]
        self.pending = {client: [] for client in self.pending}
        return counts


def into(written: list[tuple[str, bytes]], client: str) -> Callable[[bytes], None]:
    return lambda data: written.append((client, data))


@given(st.sets(clients), acts)
@STEADY
def test_each_client_is_written_exactly_what_is_for_it(first: set[str], acts: list[Any]) -> None:
    """One write per client and flush, all frames in order, and the numbers add up."""
    stream: Stream[str, str] = Stream(pack, "classic")
    naive = Naive()
    written: list[tuple[str, bytes]] = []
    joins = [("add", client) for client in sorted(first)]
    for act, *arguments in [*joins, *acts, ("flush",)]:
        if act == "add":
            client = arguments[0]
            if client not in naive.pending:
                stream.add(client, into(written, client))
                naive.add(client)
        elif act == "flush":
            assert stream.flush() == naive.flush()
            assert sorted(written) == sorted(naive.written)
            written.clear()
            naive.written.clear()
        else:
            getattr(stream, act)(*arguments)
            getattr(naive, act)(*arguments)


def test_all_share_one_bytes_object_and_so_do_those_beside_an_exception() -> None:
    stream: Stream[str, str] = Stream(pack, "classic")
    written: list[tuple[str, bytes]] = []
    for client in CLIENTS:
        stream.add(client, into(written, client))
    stream.flush()
    stream.push("x", exclude="ada")
    stream.push("y")
    stream.flush()
    assert [client for client, _ in written] == list(CLIENTS)
    common = [data for client, data in written if client != "ada"]
    assert all(data is common[0] for data in common)
    assert dict(written) == {"ada": b"<y>"} | dict.fromkeys(CLIENTS[1:], b"<x><y>")


def test_nothing_is_written_when_there_is_nothing() -> None:
    stream: Stream[str, str] = Stream(pack, "classic")
    stream.add("ada", lambda data: pytest.fail("a write"))
    assert stream.flush() == (0, 0)
    stream.push("x", exclude="ada")
    stream.insert("ada", "")
    assert stream.flush() == (0, 0)


def test_a_message_without_a_form_in_this_dialect_is_nothing() -> None:
    stream: Stream[str, str] = Stream(pack, "classic")
    stream.add("ada", lambda data: pytest.fail("a write"))
    stream.push("")
    stream.push("", exclude="ada")
    assert stream.flush() == (0, 0)


def test_what_is_pushed_during_a_flush_comes_with_the_next() -> None:
    stream: Stream[str, str] = Stream(pack, "classic")
    written: list[tuple[str, bytes]] = []
    stream.add("ada", lambda data: (written.append(("ada", data)), data == b"<x>" and stream.push("y")))
    stream.add("bob", into(written, "bob"))
    stream.flush()
    stream.push("x")
    stream.flush()
    assert written == [("ada", b"<x>"), ("bob", b"<x>")]
    stream.flush()
    assert written[2:] == [("ada", b"<y>"), ("bob", b"<y>")]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
@STEADY
def test_a_client_that_sends_everything_itself_hears_the_others_only(senders: list[int]) -> None:
    """The commonest room: each sender is left out of its own messages."""
    stream: Stream[str, str] = Stream(pack, "classic")
    written: list[tuple[str, bytes]] = []
    for client in CLIENTS:
        stream.add(client, into(written, client))
    stream.flush()
    for number, sender in enumerate(senders):
        stream.push(str(number), CLIENTS[sender])
    stream.flush()
    for place, client in enumerate(CLIENTS):
        expected = b"".join(b"<%d>" % n for n, sender in enumerate(senders) if sender != place)
        assert dict(written).get(client, b"") == expected
