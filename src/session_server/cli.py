"""The commands. Flags are made from `config.Config`; a setting that cannot work is one clear line and exit code 2."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import click

from .config import Config, ConfigError, flag_of, flags
from .dev import announce, develop, watch
from .logs import make_log
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
        command = click.option(flag_of(name), name, **more)(command)
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
@options
def dev(folder: str | None, lan: bool, **settings: Any) -> None:
    """Serve a folder of pieces while you write them."""
    run(develop(settings, folder, lan), announce)


def ac_session() -> None:
    """`ac-session [DIR]` is `session-server dev [DIR]`."""
    dev.main(prog_name="ac-session")


def run(settings: dict[str, Any], ready: Callable[[Server, str], None]) -> None:
    try:
        config = Config(**settings)
        log = make_log(config.log_format)
        raise_file_limit()
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(live(config, log, ready))
    except ConfigError as error:
        stop(str(error))


def stop(reason: str) -> NoReturn:
    click.echo(f"session-server: {reason}", err=True)
    sys.exit(2)


async def live(config: Config, log: Any, ready: Callable[[Server, str], None]) -> None:
    server = Server(config, log)
    errors = server.pieces.errors()
    if errors and not config.development:
        raise ConfigError("a piece cannot be loaded: " + "; ".join(errors))
    for error in errors:
        log.error("a piece cannot be loaded", error=error)
    await server.start()
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
