"""Input files are checked as a whole before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.errors import BadRequest
from hostler.gateway.batches.input_file import InvalidFile, read_lines, read_requests

CHAT = "/v1/chat/completions"


def line(custom_id: Any = "one", *, method: str = "POST", url: str = CHAT, **body: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": {"model": "a", **body}}).encode()


def mistakes(content: bytes, max_requests: int = 10) -> list[tuple[str, int | None]]:
    with pytest.raises(InvalidFile) as invalid:
        read_lines(content, batch="b", endpoint=CHAT, max_requests=max_requests)
    return [(each.code, each.line) for each in invalid.value.errors]


def test_reads_requests_and_skips_empty_lines() -> None:
    content = b"\xef\xbb\xbf" + line("one") + b"\r\n\n" + line("two", stream=False) + b"\n"
    items = read_lines(content, batch="b", endpoint=CHAT, max_requests=10)
    assert [(each.number, each.custom_id, each.model) for each in items] == [(1, "one", "a"), (3, "two", "a")]
    assert json.loads(items[0].body) == {"model": "a"}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"[]", "invalid_json_line"),
        (b"{}", "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (line(""), "invalid_custom_id"),
        (line("x" * 513), "invalid_custom_id"),
        (line(7), "invalid_json_line"),
        (line(method="GET"), "invalid_method"),
        (line(url="/v1/embeddings"), "mismatched_endpoint"),
        (line(model=None), "invalid_request"),
        (line(stream=True), "invalid_request"),
    ],
)
def test_names_the_line_of_a_mistake(content: bytes, code: str) -> None:
    assert mistakes(line("good") + b"\n" + content) == [(code, 2)]


def test_lists_all_mistakes_and_bounds_the_list() -> None:
    assert mistakes(line("one") + b"\n" + line("one") + b"\n{") == [
        ("duplicate_custom_id", 2),
        ("invalid_json_line", 3),
    ]
    assert len(mistakes(b"{\n" * 1000)) == 100


def test_bounds_the_number_of_requests_and_needs_one() -> None:
    assert mistakes(b"\n".join(line(f"{number}") for number in range(3)), max_requests=2) == [
        ("too_many_requests", None)
    ]
    assert mistakes(b"\n \n") == [("empty_file", None)]


def test_reads_anthropics_requests() -> None:
    params = {"model": "a", "max_tokens": 1, "messages": []}
    content = json.dumps({"requests": [{"custom_id": "one", "params": params}]}).encode()
    (item,) = read_requests(content, batch="b", max_requests=10)
    assert (item.custom_id, item.model, json.loads(item.body)) == ("one", "a", params)


@pytest.mark.parametrize(
    "requests",
    [
        [],
        None,
        [{"custom_id": "one"}],
        [{"custom_id": "one", "params": {"messages": []}}],
        [{"custom_id": "one", "params": {"model": "a", "stream": True}}],
        [{"custom_id": "one", "params": {"model": "a"}}] * 2,
        [{"custom_id": str(number), "params": {"model": "a"}} for number in range(11)],
    ],
)
def test_refuses_anthropics_requests_with_a_mistake(requests: Any) -> None:
    with pytest.raises(BadRequest, match="requests"):
        read_requests(json.dumps({"requests": requests}).encode(), batch="b", max_requests=10)
