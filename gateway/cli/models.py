"""The commands that change what is loaded or in flight: `switch`, `load`, `unload`, `pin`, `unpin` and `cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostler.gateway.cli.options import (
    ConfigOption,
    JsonLinesOption,
    JsonOption,
    KeyFileOption,
    ModelArgument,
    UrlOption,
    connect,
    echo,
    fail,
    failing_calls,
    print_json,
)
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, USAGE

if TYPE_CHECKING:
    from hostler.gateway.cli.loading import Display


def switch(
    model: ModelArgument,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Load a model and show the progress.

    Models evicted for it finish their answers first.
    """
    from hostler.gateway.cli import loading

    display = loading.print_steps_as_json if as_json else loading.print_steps
    _load(model, config, url, key_file, display, as_json=as_json)


def load(
    model: ModelArgument,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a model and wait until it is ready."""
    from hostler.gateway.cli import loading

    display = loading.print_outcome_as_json if as_json else loading.print_outcome
    _load(model, config, url, key_file, display, as_json=as_json)


def _load(
    model: str, config: str | None, url: str | None, key_file: str | None, display: Display, *, as_json: bool
) -> None:
    from hostler.gateway.cli.loading import load_steps

    with failing_calls():
        target = connect(config, url, key_file, status_required=False)
        name = target.model_name(model)
        try:
            last, data = display(name, load_steps(target, name))
        except KeyboardInterrupt:
            typer.echo("hostler: interrupted; a switch in progress continues", err=True)
            raise typer.Exit(INTERRUPTED) from None
    if last == "failed":
        if as_json:
            raise typer.Exit(FAILED)
        fail(str(data["message"]), FAILED)


def unload(
    model: ModelArgument,
    now: Annotated[bool, typer.Option("--now", help="Abort its answers in progress.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unload a model after its answers in progress."""
    from hostler.gateway.cli.loading import OPERATION_S

    with failing_calls():
        target = connect(config, url, key_file, status_required=False)
        name = target.model_name(model)
        if target.kind == "supervisor":
            result = target.client.post("/models/unload", OPERATION_S, model=name)
        else:
            result = target.client.post("/admin/unload", OPERATION_S, model=name, force=now)
    if as_json:
        print_json(result)
    elif result.get("state") == "draining":
        echo(f"{result['model']} unloads as soon as its answers in progress have ended; --now aborts them.")
    else:
        echo(f"{result['model']} is unloaded.")


HostOption = Annotated[
    str | None, typer.Option("--host", metavar="HOST", help="Apply to this host only. Default: all hosts that have it.")
]


def pin(
    model: ModelArgument,
    host: HostOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a model loaded; it is never evicted.

    Does not load the model. Survives restarts.
    """
    _set_pin(True, model, host, config, url, key_file, as_json=as_json)


def unpin(
    model: ModelArgument,
    host: HostOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Allow a pinned model to be evicted again."""
    _set_pin(False, model, host, config, url, key_file, as_json=as_json)


def _set_pin(
    pinned: bool,
    model: str,
    host: str | None,
    config: str | None,
    url: str | None,
    key_file: str | None,
    *,
    as_json: bool,
) -> None:
    from hostler.gateway.cli.client import CallFailed

    with failing_calls():
        target = connect(config, url, key_file, status_required=False)
        name = target.model_name(model)
        if target.kind == "supervisor":
            if host is not None:
                raise CallFailed(f"{target.client.url} is a supervisor and the only host; omit --host", USAGE)
            result = target.client.post("/models/pin", model=name, pinned=pinned)
        else:
            where: dict[str, Any] = {} if host is None else {"backend": host}
            try:
                result = target.client.post("/admin/pin", model=name, pinned=pinned, **where)
            except CallFailed as error:
                if error.status == 404:  # unknown model or host
                    raise CallFailed(str(error), USAGE, error.status) from error
                raise
    if as_json:
        print_json(result)
    else:
        echo(_pin_result(result))


def _pin_result(result: dict[str, Any]) -> str:
    hosts = result.get("backends") or ()
    text = f"{result['model']} is {'pinned' if result['pinned'] else 'no longer pinned'}"
    text += f" on {' and '.join(hosts)}" if hosts else ""
    if not result["remembered"]:
        text += ", but only until the supervisor restarts: its state could not be saved"
    elif result["pinned"]:
        text += ": once loaded, it stays"
    return f"{text}."


def cancel(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="Request ID, from `hostler ps` or X-Request-ID.")],
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a request that is waiting or being answered."""
    from hostler.gateway.cli.client import CallFailed

    with failing_calls():
        target = connect(config, url, key_file, status_required=False)
        target.require_gateway("only gateways know requests")
        try:
            result = target.client.post("/admin/cancel", id=request_id)
        except CallFailed as error:
            if error.status == 404:
                fail(f"no request {request_id!r} is in flight; `hostler ps` lists those that are", FAILED)
            raise
    if as_json:
        print_json(result)
    else:
        echo(f"{request_id} is cancelled.")
