"""Kinds of wire. A transport turns bytes of a socket into calls of `RoomCore`, and is a `outbox.Link` to it.

What it must do, whatever the wire:

    rooms.admit(slug, address, now)                 may this address come here? raises LimitExceeded
    rooms.join(slug, link, hello, now, outcome)     outcome(client, None), or outcome(None, error) with error.code
    client.core.inbox.receive(client, message, size, now)
    client.core.outbox.congested(client, behind)    its buffer filled, or drained
    client.core.drop(client, link, clean)           it ended, cleanly or not

It owns its buffers and their limits, and never blocks. A peer's fault never leaves it as an exception: it becomes a
close code and a counter.
"""
