"""The command that takes a host out of service: `drain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from hostler.gateway.cli.formatting import format_time, plural
from hostler.gateway.cli.options import (
    ConfigOption,
    JsonOption,
    KeyFileOption,
    UrlOption,
    connect,
    echo,
    failing_calls,
    print_json,
)
from hostler.gateway.cli.start_options import USAGE


def drain(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host, by its name in `hostler status`.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take the host back into service.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a host out of service for maintenance.

    Its waiting requests go to other hosts, answers in progress end, then its models are unloaded. Survives restarts.
    """
    from hostler.gateway.cli.client import CallFailed

    with failing_calls():
        target = connect(config, url, key_file, status_required=False)
        target.require_gateway("only gateways know several hosts")
        try:
            result = target.client.post("/admin/drain", host=host, draining=not undo)
        except CallFailed as error:
            if error.status == 404:
                raise CallFailed(str(error), USAGE, error.status) from error
            raise
    if as_json:
        print_json(result)
    else:
        for line in drain_lines(result):
            echo(line)


def drain_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a drain has done, and what it leaves."""
    host = result["host"]
    if not result["draining"]:
        yield f"{host} is in service again."
    else:
        yield f"{host} takes no new requests: {_what_goes_on(result)}."
        for lease in result["leases"]:
            until = format_time(lease["expires_at"])
            yield f"{lease['model']} stays loaded until {until}: it is leased to {lease['holder']} (`hostler lease --list`)."
        for model, waiting in result["only_here"].items():
            also = f"; {plural(waiting, 'request')} waiting now" if waiting else ""
            yield f"Nothing else serves {model}: its requests wait until `hostler drain --undo {host}`{also}."
    if not result["remembered"]:
        yield "This lasts until its supervisor restarts only: its state could not be saved."


def _what_goes_on(result: Mapping[str, Any]) -> str:
    leased = {lease["model"] for lease in result["leases"]}
    unloads = [model for model in result["loaded"] if model not in leased]
    parts = [f"{plural(result['serving'], 'answer')} in progress"] if result["serving"] else []
    if unloads:
        parts.append(f"{', '.join(unloads)} to be unloaded")
    return " and ".join(parts) or "nothing is in progress there, and nothing loaded"
