"""One line per event, readable or JSON, on standard error. Control characters of strangers never reach the terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections import deque
from typing import Any, Final, TextIO, cast

import structlog

MAX_LINES: Final = 300  # of a log that are kept
MAX_TRACES: Final = 20
MAX_FIELD: Final = 1000  # characters
MAX_TRACE: Final = 10_000  # characters, of its end


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


class Tail:
    """A logger that keeps what was said last, and passes it on to another."""

    def __init__(self, log: Any, kept: Kept | None = None, bound: dict[str, Any] | None = None) -> None:
        self._log = log
        self.kept = kept or Kept()
        self._bound = bound or {}

    def bind(self, **fields: Any) -> Tail:
        return Tail(self._log.bind(**fields), self.kept, self._bound | fields)

    def __getattr__(self, level: str) -> Any:
        say = getattr(self._log, level)

        def note(event: str, **fields: Any) -> None:
            self.kept.add(level, event, self._bound | fields)
            say(event, **fields)

        return note


class Kept:
    """The last lines of a log, and apart from them the last tracebacks: many lines must not push them out."""

    def __init__(self) -> None:
        self._count = 0
        self._lines: deque[dict[str, Any]] = deque(maxlen=MAX_LINES)
        self._traces: deque[dict[str, Any]] = deque(maxlen=MAX_TRACES)

    def add(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self._count += 1
        error = fields.pop("exc_info", None if level != "exception" else True)
        told = {name: str(value)[:MAX_FIELD] for name, value in fields.items() if value is not None}
        line = {"number": self._count, "at": time.time(), "level": level, "event": event[:MAX_FIELD], "fields": told}
        self._lines.append(line)
        if error is not None:
            error = sys.exc_info()[1] if error is True else error
            trace = "".join(traceback.format_exception(error))
            self._traces.append(line | {"trace": trace[-MAX_TRACE:]})

    def after(self, number: int) -> dict[str, Any]:
        """What came after the line of this number. `at` is in seconds since 1970."""
        return {
            "lines": [line for line in self._lines if line["number"] > number],
            "errors": [line for line in self._traces if line["number"] > number],
        }


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
