"""The commands. Flags are made from `config.Config`; a setting that cannot work is one clear line and exit code 2.

What is slow to import is imported by whoever needs it: a command line that cannot work is told at once, and the
process that keeps the sockets (see `keeper`) does without the server.
"""

from __future__ import annotations

import asyncio
import io
import json
import resource
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .conditions import PRESETS, read_net
from .config import Config, ConfigError, flag_of, flags, origin_of
from .dev import announce, create, develop, watch
from .keeper import Inherited, Keeper, is_written_here
from .logs import make_log
from .port import claim

if TYPE_CHECKING:
    from .findings import Finding
    from .server import Server

ENVIRONMENT = "SESSION_SERVER_"


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All settings as options, each also as SESSION_SERVER_… in the environment (`PORT` too)."""
    for name, kind, default, metadata in reversed(flags()):
        variables = [ENVIRONMENT + name.upper(), *(["PORT"] if name == "port" else [])]
        more: dict[str, Any] = {"help": metadata["help"], "envvar": variables, "show_envvar": False}
        if kind == "bool":
            more |= {"is_flag": True, "default": default}
        elif "many" in metadata:
            more |= {"multiple": True, "default": default, "show_default": bool(default)}
        elif "choices" in metadata:
            more |= {"type": click.Choice(metadata["choices"]), "default": default, "show_default": default is not None}
        else:
            plain = {"int": int, "float": float}.get(kind.removesuffix(" | None"), str)
            more |= {"type": plain, "default": default, "show_default": default is not None}
        if "metavar" in metadata:
            more["metavar"] = metadata["metavar"]
        names = [metadata["short"]] if "short" in metadata else []
        command = click.option(*names, flag_of(name), name, **more)(command)
    return command


class OneLine:
    """A command that says in one line what is wrong with its flags, as it does for settings that cannot work."""

    def main(self, *args: Any, **more: Any) -> Any:
        try:
            return super().main(*args, **more | {"standalone_mode": False})  # type: ignore[misc]
        except click.ClickException as error:
            stop(" ".join(error.format_message().split()))
        except click.Abort:  # Ctrl+C before there is anything to stop
            sys.exit(130)


class Commands(OneLine, click.Group): ...


class Command(OneLine, click.Command): ...


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="session-server")
@click.pass_context
def main(context: click.Context) -> None:
    """Rooms for multiplayer browser pieces: one program, one port number, one URL per room."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
@options
def serve(**settings: Any) -> None:
    """Serve in production."""
    run(settings, lambda server, url: click.echo(f"session-server is ready on {url}"))


@main.command("dev", cls=Command)
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--lan", is_flag=True, help="Open it to the local network.")
@click.option("--net", default="", metavar="NET", help=f"A bad network: {', '.join(PRESETS)}, or delay=100,loss=5.")
@options
def dev(folder: str | None, lan: bool, **settings: Any) -> None:
    """Serve a folder of pieces while you write them."""
    try:
        read_net(settings["net"])
    except ValueError as error:
        stop(f"--net: {error}")
    run(develop(settings, folder, lan), announce)


@main.command()
@click.argument("url")
@click.option("--origin", help="A site whose pages shall be let in, as https://host.")
@click.option("--long", is_flag=True, help="Also leave the connection alone for a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def check(url: str, origin: str | None, long: bool, as_json: bool) -> None:
    """Examine a running server as its clients see it.

    URL is https://HOST, or https://HOST/session/SLUG to join that room, too. Exit code 1 if anything fails, 2 if the
    URL cannot be used.
    """
    from .check import Doctor, Target
    from .findings import Level

    try:
        target = Target.of(url)
    except ValueError as error:
        stop(str(error))
    if origin is not None and (site := origin_of(origin)) is None:
        stop(f"--origin is {origin!r}, expected https://HOST")
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            show(finding)

    asyncio.run(Doctor(target, tell, origin and site, long).run())
    counts = Counter(finding.level for finding in findings)
    if as_json:
        told = {"url": url, "ok": not counts[Level.FAILED], "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        click.echo(f"\n{counts[Level.FAILED]} failed, {counts[Level.WARNING]} with a warning, {counts[Level.OK]} good")
    sys.exit(1 if counts[Level.FAILED] else 0)


@main.command()
@click.argument("url")
@click.option("--clients", default=10, show_default=True, help="How many, in all.")
@click.option("--rate", default=10.0, show_default=True, help="Messages per second that each sends.")
@click.option("--rooms", default=1, show_default=True, help="Rooms that they are spread over.")
@click.option("--seconds", default=10.0, show_default=True, help="How long, once all have joined.")
@click.option("--size", default=64, show_default=True, help="Bytes of content of each message.")
@click.option("--unreliable", is_flag=True, help="As many messages again that may be lost: by UDP.")
@click.option("--yes", is_flag=True, help="The host is yours, or its owner knows.")
def load(url: str, yes: bool, **plan: Any) -> None:
    """Let clients talk to each other through a server, and measure.

    URL as for `check`. What one sends is delivered to all others of its room. Exit code 1 if a client was not let in,
    or if something was lost that must not be; 2 if it cannot be done so.
    """
    from .check import Target
    from .load import Load, Plan, is_this_computer, table

    raise_file_limit()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        try:
            target, planned = Target.of(url), Plan(**plan)
            much = planned.excess()
            if much and not yes and not runner.run(is_this_computer(target)):
                stop(f"{much} at a host other than this computer: to whoever did not agree to it that is an attack. "
                     "Add --yes if the host is yours, or its owner knows")  # fmt: skip
        except ValueError as error:
            stop(str(error))
        except OSError as error:
            stop(f"{url}: {error}")
        renews = sys.stderr.isatty()
        begin, end = ("\r\x1b[2K", "") if renews else ("", "\n")
        outcome = runner.run(
            Load(target, planned).run(
                lambda line: click.echo(begin + line + end, nl=False, err=True), every=0.5 if renews else 5.0
            )
        )
    click.echo(begin, nl=False, err=True)
    click.echo(table(outcome))
    sys.exit(0 if outcome.is_good else 1)


MARKS = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "failed": ("✗", "red"),
    "skipped": ("-", None),
}


def show(finding: Finding) -> None:
    """One line, or as many as the terminal is too narrow for; what to do stands on its own."""
    mark, color = MARKS[finding.level]
    width = min(shutil.get_terminal_size().columns, 110)
    fill = partial(
        textwrap.fill, width=width, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False
    )
    line = fill(f"{mark} {finding.check:<12}{finding.tried}: {finding.seen}")
    click.echo(click.style(mark, fg=color, bold=True) + line.removeprefix(mark))
    if finding.advice:
        click.echo(click.style(fill(finding.advice, initial_indent=" " * 12 + "→ "), bold=True))


@main.command("new", cls=Command)
@click.argument("name")
@click.option("--pieces", default=None, metavar="DIR", help="Folder of pieces.  [default: pieces, or this folder]")
def new(name: str, pieces: str | None) -> None:
    """Write a small piece to start from."""
    folder = Path(pieces or ("pieces" if Path("pieces").is_dir() else "."))
    try:
        files = create(name, folder)
    except (ConfigError, OSError) as error:
        stop(str(error))
    click.echo(f"wrote {' and '.join(str(file) for file in files)}")
    click.echo(f"Look at it: ac-session {folder}, then open /{name} in two windows.")


def ac_session() -> None:
    """`ac-session [DIR]` is `session-server dev [DIR]`, `ac-session new NAME` is `session-server new NAME`."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["new"]:
        new.main(arguments[1:], prog_name="ac-session new")
    else:
        dev.main(arguments, prog_name="ac-session")


def run(settings: dict[str, Any], ready: Callable[[Server, str], None]) -> None:
    try:
        config = Config(**settings)
        log = make_log(config.log_format, config.verbose)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # slugs are of any script, terminals are not
        raise_file_limit()
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(live(config, log, ready))
    except ConfigError as error:
        stop(str(error))


def stop(reason: str) -> NoReturn:
    click.echo(f"session-server: {reason}", err=True)
    sys.exit(2)


async def live(config: Config, log: Any, ready: Callable[[Server, str], None]) -> None:
    inherited = Inherited.here() if config.development else None
    sockets = held = None
    if config.development and inherited is None:
        sockets, held = claim(config, lambda line: click.echo(line, err=True))  # `held` is, until this ends
        if is_written_here():
            sys.exit(await Keeper(config, sockets, log).run())
    from .server import Server

    server = Server(config, log)
    errors = server.pieces.errors()
    if errors and not config.development:
        raise ConfigError("a piece cannot be loaded: " + "; ".join(errors))
    for error in errors:
        log.error("a piece cannot be loaded", error=error)
    if inherited is None:
        await server.start(sockets)
    else:
        await server.start(inherited.sockets, inherited.datagrams, inherited.take_rooms())
        inherited.obey(server.stop, lambda: server.hand_over(inherited.leave_rooms))
    if config.development:
        server.run(watch(server))
    await server.serve(lambda url: ready(server, url))


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (the extra `speed`): a third more fan-out. It is never required."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def raise_file_limit() -> None:
    """Each client is an open file; the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
