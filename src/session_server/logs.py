"""One line per event, readable or JSON, on standard error. Control characters of strangers never reach the terminal."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO, cast

import structlog


def make_log(format: str, verbose: bool = False, stream: TextIO | None = None) -> Any:
    """A logger; `format` is `text` or `json`, `verbose` shows what is logged as `debug`."""
    stream = stream or sys.stderr
    render: Any = structlog.processors.JSONRenderer()
    tracebacks: list[Any] = [structlog.processors.format_exc_info]
    if format == "text":
        render = structlog.dev.ConsoleRenderer(
            colors=takes_colors(stream),
            sort_keys=False,  # the room first, then the client
            exception_formatter=structlog.dev.plain_traceback,
        )
        tracebacks = []
    return structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, Unbroken(stream))),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if format == "json" else "%H:%M:%S", utc=format == "json"),
            *tracebacks,
            neutralise,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        cache_logger_on_first_use=True,
    )


def takes_colors(stream: TextIO) -> bool:
    """A terminal that knows escape sequences (Emacs calls itself `dumb`), of somebody who has not asked for none."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")


def neutralise(logger: Any, method: str, event: Any) -> Any:
    """Slugs and names come from outside: an escape sequence or a newline in one must not act, or forge a line."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return event


class Unbroken:
    """A stream whose end does not stop the server: a closed pipe or a full disk costs log lines, nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return cast(Any, getattr(self._stream, name))
