"""Writes docs/reference/settings.md from config.py; a test says when it is behind."""

from pathlib import Path

from session_server.config import flag_of, flags

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"
HEAD = """# Settings

Each setting is a flag of `serve` and `dev`, and a variable: `--max-clients` is `SESSION_SERVER_MAX_CLIENTS`. The port
is also read from `PORT`. Lists repeat the flag, or separate by spaces in the variable. A setting that cannot work is
one line and exit code 2.

| flag | default | meaning |
|---|---|---|
"""


def page() -> str:
    return HEAD + "".join(row(*flag) for flag in flags())


def row(name: str, kind: str, default: object, metadata: dict[str, str]) -> str:
    match default:
        case None:
            value = ""
        case bool():
            value = "off"
        case tuple():
            value = " ".join(default)
        case float():
            value = f"{default:g}"
        case _:
            value = str(default)
    return f"| `{flag_of(name)}` | {f'`{value}`' if value else ''} | {metadata['help']} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
