"""Compressed request bodies, and byte order marks."""

from __future__ import annotations

import gzip
import zlib

import pytest

from hostler.adapters.errors import BadRequest, RequestTooLarge, UnsupportedMediaType
from hostler.gateway.request_body import codings, decompress, without_mark


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("", ()),
        ("identity", ()),
        ("GZIP", ("gzip",)),
        ("x-gzip", ("x-gzip",)),
        ("deflate, br", ("deflate", "br")),
        ("identity, zstd", ("zstd",)),
    ],
)
def test_names_the_codings_in_their_order(header: str, names: tuple[str, ...]) -> None:
    assert codings(header) == names


@pytest.mark.parametrize("header", ["compress", "gzip, lzma", "gzip, gzip, gzip", "gzip;q=1", "*"])
def test_other_codings_are_refused_with_those_that_are_supported(header: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="gzip, deflate, br, zstd"):
        codings(header)


@pytest.mark.anyio
async def test_codings_are_undone_in_reverse() -> None:
    body = zlib.compress(gzip.compress(b"{}"))
    assert await decompress(body, ("gzip", "deflate"), 100) == b"{}"


@pytest.mark.anyio
async def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    body = gzip.compress(bytes(2_000_000))
    assert len(await decompress(body, ("gzip",), 2_000_000)) == 2_000_000
    with pytest.raises(RequestTooLarge):
        await decompress(body, ("gzip",), 1_999_999)
    with pytest.raises(RequestTooLarge):
        await decompress(gzip.compress(body), ("gzip", "gzip"), 1_999_999)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [b"{}", b"", gzip.compress(b"{}")[:-1], gzip.compress(b"{}") + b"{}"],
    ids=["plain", "empty", "cut off", "more behind it"],
)
async def test_a_damaged_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="gzip"):
        await decompress(body, ("gzip",), 100)


def test_a_byte_order_mark_is_skipped_once() -> None:
    assert without_mark(b"\xef\xbb\xbf{}") == b"{}"
    assert without_mark(b"{\xef\xbb\xbf}") == b"{\xef\xbb\xbf}"
