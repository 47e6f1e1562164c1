"""The commands `pin` and `unpin`: a model stays loaded whatever else is asked for, or takes turns again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hostler.gateway.terminal.looking import asking, reach
from hostler.gateway.terminal.options import (
    USAGE,
    ConfigOption,
    JsonOption,
    KeyFileOption,
    ModelArgument,
    UrlOption,
    print_json,
    say,
)

HostOption = Annotated[
    str | None, typer.Option("--host", metavar="HOST", help="Where; else on every host that has the model.")
]


def pin(
    model: ModelArgument,
    host: HostOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a model stay loaded: it makes room for nobody.

    Loads nothing by itself. Holds over restarts.
    """
    _order(True, model, host, config, url, key_file, as_json=as_json)


def unpin(
    model: ModelArgument,
    host: HostOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a model make room for others again."""
    _order(False, model, host, config, url, key_file, as_json=as_json)


def _order(
    pinned: bool,
    model: str,
    host: str | None,
    config: str | None,
    url: str | None,
    key_file: str | None,
    *,
    as_json: bool,
) -> None:
    from hostler.gateway.terminal.calling import CallFailed

    with asking():
        house = reach(config, url, key_file, look=False)
        name = house.model(model)
        if house.kind == "supervisor":
            if host is not None:
                raise CallFailed(
                    f"{house.caller.url} is a supervisor: it is the one host there; leave out --host", USAGE
                )
            told = house.caller.post("/models/pin", model=name, pinned=pinned)
        else:
            where: dict[str, Any] = {} if host is None else {"backend": host}
            try:
                told = house.caller.post("/admin/pin", model=name, pinned=pinned, **where)
            except CallFailed as error:
                if error.status == 404:  # the model's name or the host's
                    raise CallFailed(str(error), USAGE, error.status) from error
                raise
    if as_json:
        print_json(told)
    else:
        say(_pin_words(told))


def _pin_words(told: dict[str, Any]) -> str:
    """What was done, and what it does not mean."""
    places = told.get("backends") or ()
    where = f" on {' and '.join(places)}" if places else ""
    words = f"{told['model']} is pinned{where}" if told["pinned"] else f"{told['model']} is not pinned any more{where}"
    if not told["remembered"]:
        words += ", but only until the supervisor's next start: its disk did not take it"
    elif told["pinned"]:
        words += ": it stays once it is loaded"
    return f"{words}."
