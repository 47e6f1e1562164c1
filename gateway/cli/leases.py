"""`hostler lease`: keep a model loaded for a while, list such leases and end them."""

from __future__ import annotations

import getpass
import socket
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostler.gateway.cli.options import (
    ConfigOption,
    JsonOption,
    KeyFileOption,
    UrlOption,
    complete_model,
    connect,
    echo,
    fail,
    failing_calls,
    print_json,
)
from hostler.gateway.cli.start_options import USAGE

if TYPE_CHECKING:
    from hostler.gateway.cli.client import AdminTarget


def lease(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Name or alias of a model.", autocompletion=complete_model)
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="How long, as in 90m, 2h or 1d. Default: 1h.")
    ] = None,
    holder: Annotated[
        str | None, typer.Option("--holder", metavar="NAME", help="Who holds the lease. Default: user@host.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List leases.")] = False,
    end: Annotated[
        str | None, typer.Option("--end", metavar="LEASE", help="End a lease, by its ID or its model.")
    ] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a model and keep it loaded for a while.

    Until the lease ends, requests for models that would take its place are refused. Leasing it again extends the lease.
    """
    if sum((model is not None, listed, end is not None)) != 1:
        fail("give a MODEL to lease, --list, or --end with a lease", USAGE)
    if model is None and (duration is not None or holder is not None):
        fail("--for and --holder need a MODEL", USAGE)
    with failing_calls():
        target = connect(config, url, key_file, status_required=model is None)
        if model is not None:
            taken = _take(target, target.model_name(model), duration or "1h", holder or _own_name())
            print_json(taken) if as_json else echo(f"{_line(taken)} ({taken['id']}).")
        elif end is not None:
            _end(target, end, as_json=as_json)
        else:
            _show(_leases(target), as_json=as_json)


def _take(target: AdminTarget, model: str, duration: str, holder: str) -> dict[str, Any]:
    from hostler.gateway.admin.model_leases import duration_s
    from hostler.gateway.cli.loading import OPERATION_S

    try:
        seconds = duration_s(duration)
    except ValueError as error:
        fail(f"--for: {error}", USAGE)
    if target.kind == "supervisor":
        return target.client.post("/models/lease", OPERATION_S, model=model, holder=holder, seconds=seconds)
    return target.client.post("/admin/leases", OPERATION_S, model=model, holder=holder, for_s=seconds)


def _leases(target: AdminTarget) -> list[dict[str, Any]]:
    """The leases of all hosts, the first to expire first."""
    found = [
        {**each, "backend": host["backend"]}
        for host in target.status["hosts"]
        for each in (host["host"] or {}).get("leases", ())
    ]
    return sorted(found, key=lambda each: float(each["expires_at"]))


def _end(target: AdminTarget, name: str, *, as_json: bool) -> None:
    found = [each for each in _leases(target) if name in (each["id"], each["model"])]
    if not found:
        fail(f"there is no lease {name!r}; `hostler lease --list` shows them", USAGE)
    if len(found) > 1:
        fail(f"{name} has {len(found)} leases; end them by ID: {', '.join(each['id'] for each in found)}", USAGE)
    if target.kind == "supervisor":
        target.client.post("/models/lease/end", id=found[0]["id"])
    else:
        target.client.delete(f"/admin/leases/{found[0]['id']}")
    if as_json:
        print_json({"id": found[0]["id"], "model": found[0]["model"], "ended": True})
    else:
        echo(f"The lease of {found[0]['model']} has ended.")


def _show(leases: list[dict[str, Any]], *, as_json: bool) -> None:
    from hostler.gateway.cli.formatting import Column, format_seconds, print_parts, print_table

    if as_json:
        print_json(leases)
        return
    if not leases:
        print_parts("No model is leased.")
        return
    columns = (
        *(Column("MODEL", named=True), Column("HOST", drop=2, named=True), Column("HOLDER", named=True)),
        *(Column("ENDS IN", right=True), Column("LEASE", drop=1)),
    )
    now = time.time()
    rows = [
        (each["model"], each["backend"], each["holder"], format_seconds(each["expires_at"] - now), each["id"])
        for each in leases
    ]
    print_table(columns, rows)


def _line(lease: dict[str, Any]) -> str:
    ends = time.strftime("%Y-%m-%d %H:%M", time.localtime(lease["expires_at"]))
    return f"{lease['model']} is leased to {lease['holder']} until {ends}"


def _own_name() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "operator"
    return f"{user}@{socket.gethostname()}"[:100]
