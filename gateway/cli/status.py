"""The commands that look at a running gateway or supervisor: `ps`, `models`, `status`, `events`, `logs`, `route`, `doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hostler.gateway.cli.options import (
    FAILED,
    INTERRUPTED,
    REFUSED,
    UNREACHABLE,
    USAGE,
    ConfigOption,
    JsonLinesOption,
    JsonOption,
    KeyFileOption,
    MaybeModelArgument,
    ModelArgument,
    UrlOption,
    complete_model,
    configuration,
    fail,
    print_json,
    print_json_line,
)

if TYPE_CHECKING:
    from hostler.gateway.cli.client import House

#: As many requests that ended are told of by `events` without --follow.
_PAST = 20

FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")]


@contextmanager
def asking() -> Iterator[None]:
    """A call that fails ends the command, with what to do about it; Ctrl-C ends it without a word."""
    from hostler.gateway.cli.client import CallFailed

    try:
        yield
    except CallFailed as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def reach(config: str | None, url: str | None, key_file: str | None, *, look: bool = True) -> House:
    """The gateway (or supervisor) that a command asks. Only inside of `asking`."""
    from hostler.gateway.cli import client as calling

    return calling.reach(configuration(config), url, key_file, look=look)


def ps(
    config: ConfigOption = None, url: UrlOption = None, key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show the models that run and the requests on their way."""
    from hostler.gateway.cli import formatting as tables
    from hostler.gateway.cli import views as inspecting
    from hostler.gateway.cli.formatting import Column

    with asking():
        house = reach(config, url, key_file)
    running = list(inspecting.processes(house.status))
    requests = inspecting.requests(house.status)
    if as_json:
        print_json({"models": running, "requests": requests})
        return
    if running:
        tables.show_table(
            [
                Column("MODEL", named=True),
                Column("HOST", drop=2, named=True, least=12),
                Column("STATE", least=20),
                Column("SINCE", drop=4),
                Column("MEMORY", right=True, drop=1),
                Column("BUSY", right=True),
                Column("UNLOADS", drop=3),
            ],
            inspecting.process_rows(running),
        )
    else:
        tables.show("No model runs: the first request for one starts it, or `hostler load MODEL`.")
    if house.kind == "supervisor":
        return
    tables.show("")
    if requests:
        tables.show_table(
            [
                Column("REQUEST"),
                Column("CLIENT", drop=2, named=True, least=12),
                Column("MODEL", drop=1, named=True),
                Column("BACKEND", drop=3, named=True, least=12),
                Column("PHASE"),
                Column("FOR", right=True),
            ],
            inspecting.request_rows(requests),
        )
    else:
        tables.show("No request is on its way.")


def models(
    config: ConfigOption = None, url: UrlOption = None, key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """List the models, their files, and which ones run."""
    from hostler.gateway.cli import client as calling
    from hostler.gateway.cli import formatting as tables
    from hostler.gateway.cli import views as inspecting
    from hostler.gateway.cli.formatting import Column

    given = configuration(config)
    status, silent = None, ""
    try:
        status = calling.reach(given, url, key_file).status
    except calling.CallFailed as error:
        if url or key_file or error.exit_code not in (UNREACHABLE, REFUSED):
            fail(str(error), error.exit_code)
        silent = (
            "no gateway answers" if error.exit_code == UNREACHABLE else "the gateway wants a key in HOSTLER_API_KEY"
        )
    rows = inspecting.models(given, status)
    if as_json:
        print_json(rows)
        return
    tables.show_table(
        [
            Column("MODEL", named=True),
            Column("STATE", least=20),
            Column("CONTEXT", right=True),
            Column("SLOTS", right=True, drop=2),
            Column("ALIASES", drop=1, wraps=True),
            Column("FILE", drop=3, named=True, least=28),
        ],
        inspecting.model_rows(rows),
    )
    if silent:
        typer.echo(f"(as configured: {silent}, so nothing is known of what runs)", err=True)


def status(
    config: ConfigOption = None, url: UrlOption = None, key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show hosts, models and the chain of the running gateway."""
    from hostler.gateway.cli import formatting as tables
    from hostler.gateway.cli import views as inspecting
    from hostler.gateway.cli.formatting import Column

    with asking():
        house = reach(config, url, key_file)
    told = house.status
    if as_json:
        print_json(house.told)
        return
    head = f"hostler {told['version']}" if house.kind == "gateway" else "hostler supervisor"
    tables.show(
        f"{head} at {house.caller.url}",
        inspecting.active_words(told, tables.console().width),
        "",
        tables.table(
            [
                Column("HOST", named=True),
                Column("SUPERVISOR"),
                Column("SERVING", right=True),
                Column("WAITING", right=True),
                Column("MEMORY", right=True),
            ],
            inspecting.host_rows(told),
            tables.console().width,
        ),
        "",
    )
    tables.show_table(
        [
            Column("MODEL", named=True),
            Column("STATE", least=20),
            Column("CONTEXT", right=True),
            Column("SLOTS", right=True, drop=1),
            Column("NOTE", wraps=True, least=24),
        ],
        inspecting.status_rows(told),
    )
    if hops := inspecting.chain_rows(told):
        tables.show("")
        tables.show_table(
            [
                Column("HOP", named=True),
                Column("KIND", drop=2),
                Column("STANDS", drop=3),
                Column("NOW", wraps=True),
                Column("TODAY", drop=1),
            ],
            hops,
        )


def events(
    follow: FollowOption = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Tell what happens: models, switches, requests.

    Without --follow: the last requests, and how things are now.
    """
    import time

    from hostler.gateway.cli import formatting as tables
    from hostler.gateway.cli import views as inspecting
    from hostler.gateway.cli.events import Narrator
    from hostler.gateway.cli.formatting import clock

    with asking():
        house = reach(config, url, key_file)
        if not follow and not as_json and house.kind == "gateway":
            past = house.caller.items("/admin/history", {"kind": "requests", "limit": str(_PAST)})
            if past:
                tables.show_table(tables.PAST, inspecting.past_rows(each["event"] for each in reversed(past)))
        narrator = Narrator()
        for kind, data in house.caller.events("/events"):
            if as_json:
                print_json_line({"event": kind, "data": data})
            elif words := narrator.news(kind, data):
                typer.echo(f"{clock(data['at'] if kind == 'request' else time.time())}  {words}")
            if not follow and kind == "snapshot":
                return
    fail(f"{house.caller.url} has ended the stream: it stops, or did", UNREACHABLE)


def logs(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Whose engine's log; else the gateway's own.", autocompletion=complete_model
        ),
    ] = None,
    follow: FollowOption = False,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Where, if several hosts have the model.")
    ] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Show the log of the gateway, or of a model's engine."""
    with asking():
        house = reach(config, url, key_file)
        for line in _log_lines(house, model, host, follow=follow):
            if as_json:
                print_json_line(line)
            else:
                _show_line(line)
    if follow:
        fail(f"{house.caller.url} has ended the log: it stops, or did", UNREACHABLE)


def route(
    model: ModelArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nobody; only tell who would be asked.")] = False,
    local_only: Annotated[bool, typer.Option("--local-only", help="As for a request that must stay inside.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell who would answer for a model, and why not the others.

    Without --dry-run the model is asked to say one word. No word, or nobody who would answer, is a failure.
    """
    from hostler.gateway.cli import doctor
    from hostler.gateway.cli import formatting as tables
    from hostler.gateway.cli.formatting import Column

    with asking():
        house = reach(config, url, key_file)
        house.gateway_only("the order of backends is decided by gateways")
        desk = doctor.Practice(house.caller)
        found = desk.route(house.model(model), local_only=local_only)
        if not dry_run:
            found["answer"] = desk.answer(model)
    failed = found["first"] is None if dry_run else found["answer"]["status"] != 200
    if as_json:
        print_json(found)
        if failed:
            raise typer.Exit(FAILED)
        return
    tables.show_table(
        [
            Column("HOP", right=True, drop=3),
            Column("BACKEND", named=True),
            Column("NAME THERE", drop=1, named=True),
            Column("STANDS", drop=2),
            Column("NOW", wraps=True),
        ],
        doctor.route_rows(found),
    )
    if found["first"] is None:
        tables.show("Nobody would answer.")
    if not dry_run:
        answer = found["answer"]
        if failed:
            fail(f"{answer['backend'] or 'nobody'} answered, status {answer['status']}: {answer['reason']}", FAILED)
        tables.show(f"Answered with status 200 by {answer['backend']}. {answer['reason']}".rstrip())
    elif failed:
        raise typer.Exit(FAILED)


def doctor(
    model: MaybeModelArgument = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a word through each backend, and tell what to mend."""
    from hostler.gateway.cli import doctor as practice
    from hostler.gateway.cli import formatting as tables
    from hostler.gateway.cli.formatting import Column

    with asking():
        house = reach(config, url, key_file)
        house.gateway_only("only a gateway has a chain to examine")
        desk = practice.Practice(house.caller)
        found = desk.route(None if model is None else house.model(model))
        findings = [desk.examine(found["model"], hop) for hop in found["hops"]]
    if as_json:
        print_json({"model": found["model"], "hops": findings})
    else:
        tables.show(f"{found['model']}:")
        tables.show_table(
            [
                Column("BACKEND", named=True),
                Column("RESULT"),
                Column("TOOK", right=True),
                Column("SWITCHING", right=True, drop=1),
                Column("WHAT TO DO", wraps=True),
            ],
            practice.rows(findings),
        )
    if not findings or not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)


def _log_lines(house: House, model: str | None, host: str | None, *, follow: bool) -> Iterator[dict[str, Any]]:
    """The lines of a log: `text`, and what else is known of them. Raises `CallFailed`."""
    from urllib.parse import quote

    from hostler.gateway.cli.client import CallFailed

    if house.kind == "supervisor":
        if model is None:
            known = ", ".join(card["name"] for card in house.status["models"])
            raise CallFailed(
                f"{house.caller.url} is a supervisor, which keeps the logs of engines; name a model: {known}", USAGE
            )
        asked = {"follow": "1"} if follow else {}
        for text in house.caller.lines(f"/logs/{quote(house.model(model), safe='')}", asked):
            yield {"text": text}
        return
    query = {} if follow else {"follow": "0"}
    if model is not None:
        name = house.model(model)
        query |= {"backend": _host_of(house, name, host), "model": name}
    for kind, lines in house.caller.events("/admin/logs", query):
        if kind == "lines":
            yield from cast("list[dict[str, Any]]", lines)


def _host_of(house: House, model: str, wanted: str | None) -> str:
    """The host whose log of `model` is meant: as told, else where it runs, else the first that has it."""
    from hostler.gateway.cli.client import CallFailed

    having: dict[str, bool] = {}
    for host in house.status["hosts"]:
        known = host["host"] or {"profiles": (), "models": ()}
        if any(profile["name"] == model for profile in known["profiles"]):
            running = [each["model"] for each in known["models"] if each["state"] != "stopped"]
            having[host["backend"]] = model in running
    if wanted is not None and wanted not in having:
        raise CallFailed(f"no host {wanted!r} has {model}; these have it: {', '.join(having) or 'none'}", USAGE)
    if not having:
        raise CallFailed(f"{model} runs on no host with a supervisor, so nobody keeps its log here", FAILED)
    return wanted or max(having, key=lambda name: having[name])


def _show_line(line: dict[str, Any]) -> None:
    from hostler.gateway.cli.formatting import clock
    from hostler.gateway.events import printable

    at = f"{clock(line['at'])}  " if line.get("at") else ""
    level = line.get("level") or ""
    text = "\n".join(printable(part, 4000) for part in line["text"].splitlines())
    shown = f"{level:7}  " if at else ""
    colour = {"warning": "yellow", "error": "red", "critical": "red"}.get(level)
    if colour and not os.environ.get("NO_COLOR"):
        shown = typer.style(shown, fg=colour)
    typer.echo(at + shown + text)
