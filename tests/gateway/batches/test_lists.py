"""Pages of lists of files and batches, over one gateway and over several."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import pytest
from starlette.requests import Request

from hostler.adapters.errors import BadRequest
from hostler.gateway.batches.http import FORWARDED_FROM, GatewayAnswer, OtherGateways, PassOn
from hostler.gateway.batches.ids import FILE_PREFIX, new_id
from hostler.gateway.batches.lists import ListRoute
from hostler.gateway.batches.records import StoredFile

pytestmark = pytest.mark.anyio

T = TypeVar("T")
ONE, TWO = "1" * 16, "2" * 16


def form(data: list[msgspec.Raw], first: str | None, last: str | None, more: bool) -> dict[str, Any]:
    return {"data": data, "first": first, "last": last, "more": more}


ROUTE = ListRoute(form, default=10, after="after", before="before", order="order")


def file(second: int, gateway: str = "", name: str = "") -> StoredFile:
    return StoredFile(
        id=name or new_id(FILE_PREFIX, gateway, second), owner="", filename=str(second), purpose="batch", bytes=0,
        created_at=float(second),
    )  # fmt: skip


async def show(record: StoredFile) -> dict[str, Any]:
    return {"id": record.id, "second": int(record.created_at)}


def request(query: str, *headers: tuple[str, str]) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": raw, "query_string": query.encode()})


class Gateway:
    """A gateway with these files, and the other ones as it sees them. One that is `away` does not answer."""

    def __init__(self, own: str, files: Sequence[StoredFile] = (), *, away: bool = False) -> None:
        self.own = own
        self.files = files
        self.away = away
        self.others: list[Gateway] = []
        self.asked = 0
        self.refused: list[str] = []

    async def forward(self, gateway: str, request: Request, body: bytes | None) -> Any:
        raise AssertionError("lists are not passed on")

    async def ask_all(
        self, request: Request, header: tuple[str, str], read: Callable[[bytes], T]
    ) -> list[GatewayAnswer[T]]:
        found: list[GatewayAnswer[T]] = []
        for each in self.others:
            part = await each._part(request, header)
            try:
                found.append(GatewayAnswer(each.own[:3], None if part is None else read(part)))
            except ValueError as error:
                self.refused.append(str(error))
                found.append(GatewayAnswer(each.own[:3], None))
        return found

    async def _part(self, asked: Request, header: tuple[str, str]) -> bytes | None:
        if self.away:
            return None
        self.asked += 1
        headers = (header, (FORWARDED_FROM, "http://other"))
        query = asked.scope["query_string"].decode()
        found = await ROUTE.answer(request(query, *headers), self.files, show, gateways=self, pass_on=True)
        return bytes(found.body)

    async def page(self, query: str = "", *, pass_on: bool = False) -> dict[str, Any]:
        gateways: OtherGateways | None = self if self.others else None
        found = await ROUTE.answer(request(query), self.files, show, gateways=gateways, pass_on=pass_on)
        page: dict[str, Any] = json.loads(bytes(found.body))
        return page | {"missing": found.headers.get("x-hostler-missing-gateways")}

    async def seconds(self, query: str = "") -> tuple[list[int], bool]:
        page = await self.page(query)
        return [each["second"] for each in page["data"]], page["more"]


def gateways(first: Sequence[int], second: Sequence[int]) -> tuple[Gateway, Gateway]:
    """Two gateways of a cluster, with files of these seconds."""
    one = Gateway(ONE, [file(each, ONE) for each in first])
    two = Gateway(TWO, [file(each, TWO) for each in second])
    one.others, two.others = [two], [one]
    return one, two


EARLIER = Gateway("", [file(second, name=f"f{second}") for second in (3, 2, 1, 0)])


@pytest.mark.parametrize(
    ("query", "seconds", "more"),
    [
        ("", [3, 2, 1, 0], False),
        ("limit=2", [3, 2], True),
        ("after=f2", [1, 0], False),
        ("before=f1&limit=1", [2], True),
        ("after=f3&before=f0", [2, 1], False),
        ("order=asc&after=f1", [2, 3], False),
        ("order=asc&limit=1", [0], True),
        ("limit=0", [3], True),
    ],
)
async def test_a_page_begins_after_what_the_request_names(query: str, seconds: list[int], more: bool) -> None:
    assert await EARLIER.seconds(query) == (seconds, more)


@pytest.mark.parametrize("query", ["after=f9", "before=x", "limit=many", "after=file-hst-1"])
async def test_a_page_after_what_is_not_in_the_list_is_an_error(query: str) -> None:
    with pytest.raises(BadRequest):
        await EARLIER.page(query)


async def test_a_page_goes_on_after_an_entry_that_was_deleted() -> None:
    one = Gateway(ONE, [file(each, ONE) for each in (3, 1)])
    assert await one.seconds("after=" + new_id(FILE_PREFIX, ONE, 2)) == ([1], False)


@pytest.mark.parametrize("limit", range(1, 8))
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_any_gateway_have_every_entry_once(limit: int, order: str) -> None:
    one, two = gateways([5, 3, 2, 0], [6, 4, 1])
    found: list[int] = []
    query, asked = f"limit={limit}&order={order}", [one, two]
    while True:
        page = await asked[len(found) % 2].page(query)
        found += [each["second"] for each in page["data"]]
        assert len(page["data"]) <= limit and page["missing"] is None
        if not page["more"]:
            break
        query = f"limit={limit}&order={order}&after={page['last']}"
    assert found == sorted(range(7), reverse=order == "desc")


async def test_pages_before_an_entry_of_another_gateway_end_at_it() -> None:
    one, two = gateways([5, 3, 2, 0], [6, 4, 1])
    assert await one.seconds(f"limit=2&before={two.files[2].id}") == ([3, 2], True)
    assert await one.seconds(f"limit=9&before={two.files[1].id}") == ([6, 5], False)


async def test_a_gateway_that_does_not_answer_is_named() -> None:
    one, two = gateways([5, 3], [4])
    two.away = True
    page = await one.page()
    assert [each["second"] for each in page["data"]] == [5, 3]
    assert page["missing"] == "222"
    # Pages go on behind an entry of it.
    assert await one.seconds(f"after={two.files[0].id}") == ([3], False)


async def test_an_answer_of_another_release_is_missing() -> None:
    class Other(Gateway):
        async def _part(self, asked: Request, header: tuple[str, str]) -> bytes | None:
            return b'{"object": "list", "data": []}'

    one = Gateway(ONE, [file(1, ONE)])
    one.others = [Other(TWO)]
    assert (await one.page())["missing"] == "222"
    assert one.refused == ["its answer is that of another release; upgrade all gateways to the same one"]


async def test_an_entry_that_two_gateways_have_is_shown_once() -> None:
    one, two = gateways([5, 3], [])
    two.files = [*one.files, file(4, TWO)]  # of a copied database: their ids say that they are the other's
    assert await one.seconds() == ([5, 4, 3], False)
    assert await two.seconds() == ([5, 4, 3], False)


async def test_what_others_cannot_find_again_is_not_shown_to_them() -> None:
    one, two = gateways([1], [])
    one.files = [*one.files, file(2, "")]  # of before it was in the cluster
    assert await one.seconds() == ([2, 1], False)
    assert await two.seconds() == ([1], False)


async def test_a_backend_is_asked_only_if_no_gateway_has_anything() -> None:
    one, two = gateways([], [1])
    assert [each["second"] for each in (await one.page(pass_on=True))["data"]] == [1]
    two.files = []
    with pytest.raises(PassOn):
        await one.page(pass_on=True)


@pytest.mark.parametrize("query", ["after=file-abc", "before=file-abc", "limit=many"])
async def test_a_page_of_a_backends_list_is_asked_of_the_backend(query: str) -> None:
    one, _ = gateways([], [1])
    for gateway in (one, Gateway("")):
        with pytest.raises(PassOn):
            await gateway.page(query, pass_on=True)
    with pytest.raises(BadRequest):
        await one.page(query)


async def test_gateways_do_not_ask_for_each_others_lists_in_circles() -> None:
    one, two = gateways([2], [1])
    await one.page()
    assert (one.asked, two.asked) == (0, 1)
