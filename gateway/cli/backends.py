"""The command `backends`: where each backend is, and which models it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from hostler.gateway.cli.options import ConfigOption, JsonOption, KeyFileOption, UrlOption, connect, fail, failing_calls
from hostler.gateway.cli.start_options import USAGE

#: Models of one backend that are shown unless it is named.
_SHOWN: Final = 20


def backends(
    name: Annotated[
        str | None, typer.Argument(metavar="BACKEND", help="Show all models of this backend. Default: some of each.")
    ] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the gateway's backends and the models of each."""
    from hostler.gateway.cli.formatting import Column, print_parts, print_table
    from hostler.gateway.cli.options import print_json

    with failing_calls():
        target = connect(config, url, key_file)
        target.require_gateway("only gateways have backends")
        found: list[dict[str, Any]] = target.client.get("/admin/backends")["backends"]
    if name is not None:
        known = [each["backend"] for each in found]
        if name not in known:
            fail(f"{name!r} is not a backend; backends are: {', '.join(known) or 'none'}", USAGE)
        found = [each for each in found if each["backend"] == name]
    if as_json:
        print_json(found)
        return
    print_table(
        [
            Column("BACKEND", named=True),
            Column("KIND", drop=1),
            Column("ADDRESS", drop=2, named=True, least=20),
            Column("MODELS", right=True),
            Column("STATE", wraps=True),
        ],
        backend_rows(found),
    )
    if any(each["models"] for each in found):
        print_parts("")
        print_table(
            [
                Column("BACKEND", named=True),
                Column("MODEL", named=True),
                Column("NAME THERE", drop=3, named=True, least=12),
                Column("KIND", drop=1),
                Column("CONTEXT", right=True),
                Column("CAPABILITIES", drop=2, wraps=True),
                Column("QUANTIZATION", drop=4),
            ],
            model_rows(found, limit=None if name is not None else _SHOWN),
        )
    for line in hidden_models(found, limit=None if name is not None else _SHOWN):
        print_parts(line)


def backend_rows(found: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each backend."""
    return [(each["backend"], each["kind"], address(each), str(len(each["models"])), state(each)) for each in found]


def address(backend: Mapping[str, Any]) -> str:
    """Where the routes of a backend are; empty for supervisors."""
    return f"{backend['url'] or '-'}{backend['prefix'] or ''}"


def state(backend: Mapping[str, Any]) -> str:
    """Whether a backend responds, and what keeps it from listing its models."""
    words = "reachable" if backend["reachable"] else "unreachable"
    if backend["problem"]:
        return f"{words}; no list of models: {backend['problem']}"
    if backend["prefix"] is not None:
        where = backend["prefix"] or "the root"
        return f"{words}; its URL has no path, {where} worked"
    return words


def model_rows(found: Iterable[Mapping[str, Any]], *, limit: int | None) -> list[tuple[str, ...]]:
    """A row for each model, at most `limit` of each backend."""
    return [
        (
            each["backend"],
            model["name"],
            model["name_there"],
            model["kind"],
            str(model["context"] or "-"),
            ", ".join(model["capabilities"]) or "-",
            model["quantization"] or "-",
        )
        for each in found
        for model in _shown(each["models"], limit)
    ]


def hidden_models(found: Iterable[Mapping[str, Any]], *, limit: int | None) -> Iterator[str]:
    """A line for each backend with more models than `limit`."""
    for each in found:
        more = len(each["models"]) - len(_shown(each["models"], limit))
        if more:
            yield f"{each['backend']} has {more} more; `hostler backends {each['backend']}` shows all."


def _shown(models: Sequence[Mapping[str, Any]], limit: int | None) -> Sequence[Mapping[str, Any]]:
    return models if limit is None else models[:limit]
