"""Lists of files and batches: the newest first, page by page, of all gateways of a cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import BadRequest, printable
from hostler.gateway.batches.http import FORWARDED_FROM, OtherGateways, PassOn, reply
from hostler.gateway.batches.ids import gateway_of, moment_of

#: Entries of a page, at most.
_LONGEST_PAGE: Final = 10_000
#: On requests between gateways: the `ListQuery` that the asked gateway makes of the client's.
_QUERY: Final = "x-hostler-list-query"
#: On answers to clients: the gateways whose entries are missing.
MISSING: Final = "x-hostler-missing-gateways"


class ListPlace(NamedTuple):
    """Where an entry stands: `moment` is its creation, in microseconds since the epoch."""

    moment: int
    id: str


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page: `limit` entries after a place, or before one; `oldest_first` turns the order."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=_LONGEST_PAGE)]
    after: ListPlace | None = None
    before: ListPlace | None = None
    oldest_first: bool = False


class ListEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as clients see it."""

    place: ListPlace
    shown: msgspec.Raw


class ListPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a list: `more` is whether there are more in its direction, `any` whether the list has any entries at all."""

    entries: tuple[ListEntry, ...]
    more: bool
    any: bool


class Record(Protocol):
    """A file or batch."""

    @property
    def id(self) -> str: ...

    @property
    def created_at(self) -> float: ...


_Record = TypeVar("_Record", bound=Record)


class ListRoute:
    """How the list of one route is asked for, and how its pages look. `after`, `before` and `order` are names of its
    parameters, `form` makes an answer of entries, their first and last id, and of whether there are more."""

    def __init__(
        self,
        form: Callable[[list[msgspec.Raw], str | None, str | None, bool], dict[str, Any]],
        *,
        default: int,
        after: str,
        before: str = "",
        order: str = "",
    ) -> None:
        self._form = form
        self._default = default
        self._after = after
        self._before = before
        self._order = order

    async def answer(
        self,
        request: Request,
        records: Sequence[_Record],
        show: Callable[[_Record], Awaitable[dict[str, Any]]],
        *,
        gateways: OtherGateways | None,
        pass_on: bool,
    ) -> Response:
        """The page that is asked for: of these records, and of those of the other gateways. `pass_on`: if there are none at
        all, a backend may have some."""
        asked = request.headers.get(_QUERY) if FORWARDED_FROM in request.headers else None
        if asked is not None:
            records = [each for each in records if gateways is not None and gateway_of(each.id) == gateways.own]
            return reply(await _page(records, _decoded(asked), show))
        try:
            query = self._query(request, records)
        except BadRequest:
            if pass_on:  # the page may begin at an entry of the backend
                raise PassOn from None
            raise
        pages, missing = [await _page(records, query, show)], []
        if gateways is not None and FORWARDED_FROM not in request.headers:
            header = (_QUERY, msgspec.json.encode(query).decode())
            for gateway, page in await gateways.ask_all(request, header, _decoded_page):
                if page is None:
                    missing.append(gateway)
                else:
                    pages.append(page)
        page = merged(pages, query)
        if pass_on and not page.any:
            raise PassOn
        first, last = (page.entries[0].place.id, page.entries[-1].place.id) if page.entries else (None, None)
        answer = reply(self._form([each.shown for each in page.entries], first, last, page.more))
        if missing:
            answer.headers[MISSING] = ", ".join(
                printable(name, 80).encode("ascii", "replace").decode() for name in missing
            )
        return answer

    def _query(self, request: Request, records: Sequence[Record]) -> ListQuery:
        try:
            limit = max(1, min(_LONGEST_PAGE, int(request.query_params.get("limit", self._default))))
        except ValueError:
            raise BadRequest("limit must be an integer", param="limit") from None
        after, before = (
            _place_of(given, records, name) if name and (given := request.query_params.get(name)) else None
            for name in (self._after, self._before)
        )
        oldest_first = bool(self._order) and request.query_params.get(self._order) == "asc"
        return ListQuery(limit=limit, after=after, before=before, oldest_first=oldest_first)


def merged(pages: Iterable[ListPage], query: ListQuery) -> ListPage:
    """The page of all these pages' entries, each once; of two that are the same, that of the first page."""
    pages = list(pages)
    reverse = not query.oldest_first
    found = {entry.place: entry for page in reversed(pages) for entry in page.entries}
    entries = [found[place] for place in sorted(found, reverse=reverse)]
    kept = entries[-query.limit :] if _is_backwards(query) else entries[: query.limit]
    more = len(entries) > query.limit or any(each.more for each in pages)
    return ListPage(entries=tuple(kept), more=more, any=any(each.any for each in pages))


async def _page(
    records: Sequence[_Record], query: ListQuery, show: Callable[[_Record], Awaitable[dict[str, Any]]]
) -> ListPage:
    """The page of these records alone."""
    placed = sorted(
        ((_place(each), each) for each in records), key=lambda each: each[0], reverse=not query.oldest_first
    )
    found = [
        (place, record)
        for place, record in placed
        if (query.after is None or _is_behind(place, query.after, query))
        and (query.before is None or _is_behind(query.before, place, query))
    ]
    kept = found[-query.limit :] if _is_backwards(query) else found[: query.limit]
    entries = [ListEntry(place=place, shown=msgspec.Raw(msgspec.json.encode(await show(each)))) for place, each in kept]
    return ListPage(entries=tuple(entries), more=len(found) > query.limit, any=bool(records))


def _is_behind(place: ListPlace, other: ListPlace, query: ListQuery) -> bool:
    return place > other if query.oldest_first else place < other


def _is_backwards(query: ListQuery) -> bool:
    """Whether the page ends at a place instead of beginning there."""
    return query.before is not None


def _place(record: Record) -> ListPlace:
    moment = moment_of(record.id)
    return ListPlace(round(record.created_at * 1e6) if moment is None else moment, record.id)


def _place_of(given: str, records: Sequence[Record], param: str) -> ListPlace:
    """The place of an entry, which may be at another gateway or deleted meanwhile."""
    if (moment := moment_of(given)) is not None:
        return ListPlace(moment, given)
    for record in records:
        if record.id == given:
            return _place(record)
    raise BadRequest(f"{param} names nothing in this list: {printable(given, 80)}; begin again without it", param=param)


def _decoded(header: str) -> ListQuery:
    try:
        return msgspec.json.decode(header, type=ListQuery)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(f"{_QUERY}: {error}; upgrade all gateways to the same release") from error


def _decoded_page(body: bytes) -> ListPage:
    """Raises `ValueError` if another release has written it."""
    try:
        return msgspec.json.decode(body, type=ListPage)
    except (msgspec.MsgspecError, RecursionError):
        raise ValueError("its answer is that of another release; upgrade all gateways to the same one") from None
