"""Commands for API keys: create, change, list and revoke them in their file."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hostler.gateway.cli.options import ConfigOption, JsonOption, cannot_write, fail, print_json, read_configuration
from hostler.gateway.cli.start_options import FAILED, USAGE

if TYPE_CHECKING:
    from hostler.gateway.admin.key_list import KeyView
    from hostler.gateway.auth.keys import KeyRecord
    from hostler.gateway.settings import Settings

keys_app = typer.Typer(help="Create, change, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)

_UNITS = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


class KeyScopeOption(StrEnum):
    infer = "infer"
    read = "read"
    operate = "operate"


_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, shown in logs.")]
_ScopeOption = Annotated[
    list[KeyScopeOption] | None,
    typer.Option("--scope", help="Permission; repeatable. Default: infer and read."),
]
_PriorityOption = Annotated[
    int | None,
    typer.Option(
        "--priority", min=-1_000_000, max=1_000_000, help="Priority in the queue; higher goes first. Default: 0."
    ),
]
_LocalOnlyOption = Annotated[
    bool | None, typer.Option("--local-only/--no-local-only", help="Never send its requests to external backends.")
]
_ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="PATTERN", help="Model it may use, e.g. qwen*; repeatable. Default: all."),
]
_BackendOption = Annotated[
    list[str] | None,
    typer.Option("--backend", metavar="PATTERN", help="Backend it may use; repeatable. Default: all."),
]
_RequestsOption = Annotated[
    int | None,
    typer.Option("--requests-per-minute", min=0, max=2**53, help="Most requests in a minute; 0 for no limit."),
]
_TokensMinuteOption = Annotated[
    int | None, typer.Option("--tokens-per-minute", min=0, max=2**53, help="Most tokens in a minute; 0 for no limit.")
]
_TokensDayOption = Annotated[
    int | None, typer.Option("--tokens-per-day", min=0, max=2**53, help="Most tokens in a day; 0 for no limit.")
]
_DollarsOption = Annotated[
    float | None, typer.Option("--dollars-per-day", help="Most US dollars in a day; a negative number for no limit.")
]
_ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help="A date (2027-01-31), a time from now (12h, 30d, 4w), or never."),
]
_NoteOption = Annotated[str | None, typer.Option("--note", help="A remark, shown in lists.")]


@keys_app.command("add")
def keys_add(
    name: _NameArgument,
    scope: _ScopeOption = None,
    priority: _PriorityOption = None,
    local_only: _LocalOnlyOption = None,
    model: _ModelOption = None,
    backend: _BackendOption = None,
    requests_per_minute: _RequestsOption = None,
    tokens_per_minute: _TokensMinuteOption = None,
    tokens_per_day: _TokensDayOption = None,
    dollars_per_day: _DollarsOption = None,
    expires: _ExpiresOption = None,
    note: _NoteOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key; it is shown once and stored as a hash."""
    from hostler.gateway.auth import keys
    from hostler.gateway.context import KeyRules

    if not name.strip() or not name.isprintable():
        fail("a key needs a name: one line of text, by which logs and `hostler keys list` show it", USAGE)
    path = _key_file(config)
    limits = _limits(model, backend, requests_per_minute, tokens_per_minute, tokens_per_day, dollars_per_day)
    others = _others(scope or (KeyScopeOption.infer, KeyScopeOption.read), priority, local_only, expires, note)
    scopes = others.pop("scopes")
    with _failing_cleanly(path):
        key = keys.add(path, name, scopes, rules=KeyRules(**limits), **others)
    if as_json:
        print_json({"name": name, "scopes": sorted(scopes), "key": key, "file": str(path)})
        return
    typer.echo(f"stored as a hash in {path}; the key is shown only now:", err=True)
    typer.echo(key)


@keys_app.command("set")
def keys_set(
    name: _NameArgument,
    scope: _ScopeOption = None,
    priority: _PriorityOption = None,
    local_only: _LocalOnlyOption = None,
    model: _ModelOption = None,
    backend: _BackendOption = None,
    requests_per_minute: _RequestsOption = None,
    tokens_per_minute: _TokensMinuteOption = None,
    tokens_per_day: _TokensDayOption = None,
    dollars_per_day: _DollarsOption = None,
    expires: _ExpiresOption = None,
    note: _NoteOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what a key may do.

    What is not given stays. Running gateways notice within a second.
    """
    from hostler.gateway.auth import keys

    path = _key_file(config)
    limits = _limits(model, backend, requests_per_minute, tokens_per_minute, tokens_per_day, dollars_per_day)
    changes = limits | _others(scope, priority, local_only, expires, note)
    if not changes:
        fail("nothing to change; see `hostler keys set --help`", USAGE)
    with _failing_cleanly(path):
        if not keys.change(path, name, **changes):
            _unknown_key(name, path, config)
    if as_json:
        print_json({"name": name, "changed": sorted(changes)})
    else:
        typer.echo(f"changed {name}")


@keys_app.command("list")
def keys_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List API keys, their limits, and what they have used today.

    Those that the members of a cluster share are marked.
    """
    from hostler.gateway.admin.key_list import key_view
    from hostler.gateway.auth import keys
    from hostler.gateway.auth.bind_policy import key_path
    from hostler.gateway.cli.formatting import Column, print_table
    from hostler.gateway.key_usage import read_figures, usage_file

    settings = read_configuration(config).settings
    path = key_path(settings)
    with _failing_cleanly(path):
        records = keys.read(path)
        shared = keys.unless_taken(_shared_keys(settings), records)
    used = read_figures(usage_file(settings.gateway), time.time())
    views = [key_view(each, used.get(each.name)) for each in records]
    views += [key_view(each, used.get(each.name), shared=True) for each in shared]
    if as_json:
        print_json(views)
    elif not views:
        typer.echo(f"No keys in {path}: the gateway serves this machine only, without authentication.")
    else:
        columns = [
            Column("NAME", named=True),
            Column("SCOPES"),
            Column("LIMITS", wraps=True),
            Column("USED TODAY", drop=1),
            Column("EXPIRES", drop=2),
            Column("NOTE", drop=3, wraps=True),
            Column("CREATED", drop=4),
        ]
        rows = key_rows(views, time.time())
        if shared:
            columns.insert(1, Column("OF"))
            rows = [
                (row[0], "cluster" if view.shared else "file", *row[1:]) for row, view in zip(rows, views, strict=True)
            ]
        print_table(columns, rows)


@keys_app.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key; running gateways notice within a second."""
    from hostler.gateway.auth import keys

    path = _key_file(config)
    with _failing_cleanly(path):
        if not keys.revoke(path, name):
            _unknown_key(name, path, config)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        typer.echo(f"revoked {name}")


def key_rows(views: Iterable[KeyView], now: float) -> list[tuple[str, ...]]:
    """The rows of `hostler keys list`. `now` is in seconds since the epoch."""
    rows: list[tuple[str, ...]] = []
    for view in views:
        used = view.used
        figures = "" if used is None else f"{used.requests:,} requests, {used.tokens:,} tokens, ${used.dollars:.2f}"
        expired = view.expires is not None and view.expires <= now
        expires = "" if view.expires is None else ("expired " if expired else "") + _date(view.expires - 1)
        limits = ", ".join(_limit_words(view))
        rows.append((view.name, ", ".join(view.scopes), limits, figures, expires, view.note, _date(view.created)))
    return rows


def parse_expiry(text: str, now: float) -> int | None:
    """The end of that day, or so long after `now`, in seconds since the epoch; `None` for `never`. Raises `ValueError`."""
    if text == "never":
        return None
    if found := re.fullmatch(r"([1-9][0-9]{0,5})([hdw])", text):
        return int(now) + int(found[1]) * _UNITS[found[2]]
    day = datetime.date.fromisoformat(text) + datetime.timedelta(days=1)
    return int(datetime.datetime.combine(day, datetime.time()).timestamp())


def _limit_words(view: KeyView) -> list[str]:
    rules = view.rules
    words = [f"models {' '.join(rules.models)}"] if rules.models else []
    words += [f"backends {' '.join(rules.backends)}"] if rules.backends else []
    words += ["local only"] if view.local_only else []
    words += [f"priority {view.priority}"] if view.priority else []
    words += [f"{rules.requests_per_minute:,} requests/min"] if rules.requests_per_minute is not None else []
    words += [f"{rules.tokens_per_minute:,} tokens/min"] if rules.tokens_per_minute is not None else []
    words += [f"{rules.tokens_per_day:,} tokens/day"] if rules.tokens_per_day is not None else []
    return words + ([f"${rules.dollars_per_day:g}/day"] if rules.dollars_per_day is not None else [])


def _limits(
    models: list[str] | None,
    backends: list[str] | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    tokens_per_day: int | None,
    dollars_per_day: float | None,
) -> dict[str, Any]:
    """The fields of `KeyRules` that were given."""
    found: dict[str, Any] = {}
    for name, patterns in (("models", models), ("backends", backends)):
        if patterns is not None:
            found[name] = () if patterns == ["*"] else tuple(patterns)
    counts = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
    }
    found |= {name: count or None for name, count in counts.items() if count is not None}
    if dollars_per_day is not None:
        found["dollars_per_day"] = None if dollars_per_day < 0 else dollars_per_day
    return found


def _others(
    scopes: Iterable[KeyScopeOption] | None,
    priority: int | None,
    local_only: bool | None,
    expires: str | None,
    note: str | None,
) -> dict[str, Any]:
    """The other fields of `KeyRecord` that were given."""
    found: dict[str, Any] = {}
    if scopes:
        found["scopes"] = tuple(sorted({each.value for each in scopes}))
    given = {"priority": priority, "local_only": local_only, "note": note}
    found |= {name: value for name, value in given.items() if value is not None}
    if expires is not None:
        try:
            found["expires"] = parse_expiry(expires, time.time())
        except (ValueError, OverflowError):
            fail(f"--expires: {expires!r} is no time; write 2027-01-31, 12h, 30d, 4w or never", USAGE)
    return found


def _date(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def _key_file(config: str | None) -> Path:
    from hostler.gateway.auth.bind_policy import key_path

    return key_path(read_configuration(config).settings)


@contextmanager
def _failing_cleanly(path: Path) -> Iterator[None]:
    """Turn errors with the key file into messages and exit codes."""
    from hostler.gateway.auth.keys import KeyFileError

    try:
        yield
    except KeyFileError as error:
        fail(str(error), FAILED)
    except OSError as error:
        cannot_write(path, error)


def _shared_keys(settings: Settings) -> tuple[KeyRecord, ...]:
    """The keys that this gateway has from its cluster."""
    from hostler.gateway.auth import keys
    from hostler.gateway.shared_files import shared_file

    file = shared_file(settings.cluster, "keys")
    return () if file is None else keys.read(file)


def _unknown_key(name: str, path: Path, config: str | None) -> NoReturn:
    from hostler.gateway.auth import keys

    settings = read_configuration(config).settings
    if name in {each.name for each in _shared_keys(settings)}:
        fail(
            f"{name!r} is a key that the members of the cluster share; change it in the file that was published, and publish "
            "that again: hostler config push keys FILE",
            FAILED,
        )
    names = ", ".join(each.name for each in keys.read(path))
    fail(f"no key named {name!r} in {path}; keys are: {names or 'none'}", FAILED)
