"""The API keys with their rules and what they have used today, without anything secret."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.gateway.admin.http import json_endpoint, json_response
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.auth.keys import KeyRecord, KeyRing
from hostler.gateway.context import KeyRules, KeyScope
from hostler.gateway.key_usage import KeyFigures, KeyUsage
from hostler.gateway.routing import gateway_route


class KeyUsedToday(msgspec.Struct, frozen=True, kw_only=True):
    """What a key with limits has used today, in US dollars where it is money."""

    requests: int
    tokens: int
    dollars: float


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its hash. Times in seconds since the epoch; `used` is `None` for keys without limits. `shared`: the members
    of the cluster share it."""

    name: str
    scopes: tuple[KeyScope, ...]
    created: int
    expires: int | None
    local_only: bool
    priority: int
    note: str
    rules: KeyRules
    used: KeyUsedToday | None
    shared: bool = False


def key_view(record: KeyRecord, figures: KeyFigures | None, *, shared: bool = False) -> KeyView:
    """The key as it is shown."""
    used, rules = None, record.rules or KeyRules()
    if rules.counts:
        figures = figures or KeyFigures()
        used = KeyUsedToday(requests=figures.requests, tokens=figures.tokens, dollars=round(figures.dollars, 6))
    return KeyView(
        name=record.name,
        scopes=record.scopes,
        created=record.created,
        expires=record.expires,
        local_only=record.local_only,
        priority=record.priority,
        note=record.note,
        rules=rules,
        used=used,
        shared=shared,
    )


class KeyRoutes:
    """`keys` and `usage` are `None` where no keys are needed."""

    def __init__(self, keys: KeyRing | None, usage: KeyUsage | None) -> None:
        self._keys = keys
        self._usage = usage

    def routes(self) -> list[RouteMatch]:
        return [gateway_route("keys", "/admin/keys", json_endpoint(self._list), scope="operate")]

    async def _list(self, request: Request) -> Response:
        figures = {} if self._usage is None else self._usage.figures()
        records = () if self._keys is None else self._keys.records()
        own = set() if self._keys is None else {each.name for each in self._keys.own()}
        return json_response([key_view(each, figures.get(each.name), shared=each.name not in own) for each in records])
