"""Reading what servers say of their models: odd values count as absent."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.adapters.remote_models import (
    MAX_MODELS,
    ListUnavailable,
    QueryAnswer,
    document,
    entries,
    guessed_capabilities,
    model_name,
    parameter_count,
    quantization_in,
    short_text,
    timestamp,
    unavailable,
    whole,
)


@pytest.mark.parametrize(
    ("values", "number"),
    [
        ((4096,), 4096),
        ((None, "8192"), 8192),
        ((4096.0,), 4096),
        ((True, 0, -1, "x", 1e300, float("nan"), [], 7), 7),
        ((), 0),
    ],
)
def test_the_first_sensible_number_counts(values: tuple[Any, ...], number: int) -> None:
    assert whole(*values) == number


@pytest.mark.parametrize("value", ["", " ", "a\nb", "x" * 201, 7, None, ["m"]])
def test_what_is_no_name(value: Any) -> None:
    assert model_name(value) == ""


def test_a_name_loses_the_blanks_around_it() -> None:
    assert model_name(" qwen3:8b ") == "qwen3:8b"


def test_texts_are_one_short_line() -> None:
    assert short_text(" a\n b\x00 ") == "a b"
    assert len(short_text("x" * 5000)) == 300
    assert short_text({"a": 1}) == ""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1_700_000_000, 1_700_000_000.0),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000.123456),
        ("0001-01-01T00:00:00Z", 0.0),
        ("yesterday", 0.0),
        (True, 0.0),
        (-5, 0.0),
    ],
)
def test_dates_and_numbers_are_times(value: Any, seconds: float) -> None:
    assert timestamp(value) == pytest.approx(seconds)


@pytest.mark.parametrize(("value", "count"), [("8.2B", 8_200_000_000), ("270M", 270_000_000), (7, 7), ("large", 0)])
def test_numbers_of_parameters(value: Any, count: int) -> None:
    assert parameter_count(value) == count


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("Llama-3.1-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen3-8b-awq", "AWQ"),
        ("m-4bit", "4BIT"),
        ("Q4ever", ""),
        ("gpt-5", ""),
    ],
)
def test_a_quantization_is_found_in_a_name(name: str, quantization: str) -> None:
    assert quantization_in(name) == quantization


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [
        ("gpt-5", ("completion",)),
        ("text-embedding-3-small", ("embedding",)),
        ("bge-m3", ("embedding",)),
        ("bge-reranker-v2-m3", ("rerank",)),
        ("whisper-1", ()),
        ("dall-e-3", ()),
    ],
)
def test_a_model_that_nothing_is_known_of_is_judged_by_its_name(name: str, capabilities: tuple[str, ...]) -> None:
    assert guessed_capabilities(name) == capabilities


def test_a_list_is_bounded_and_odd_entries_are_left_out() -> None:
    found = entries({"data": [{"id": str(number)} for number in range(MAX_MODELS + 5)]}, "data")
    assert found is not None and len(found) == MAX_MODELS
    assert entries({"data": [7, None, {"id": "m"}]}, "data") == [{"id": "m"}]
    assert entries({"data": {}}, "data") is None


@pytest.mark.parametrize("body", [b"", b"nothing", b"[" * 10_000, b'{"a": "\xff"}'])
def test_an_answer_that_is_no_json_is_none(body: bytes) -> None:
    assert document(QueryAnswer(status=200, body=body)) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (QueryAnswer(problem="it cannot be reached"), "it cannot be reached"),
        (QueryAnswer(status=401), "rejected the API key"),
        (QueryAnswer(status=200), "without a list"),
        (QueryAnswer(status=404), "status 404"),
    ],
)
def test_a_missing_list_is_explained(answer: QueryAnswer, words: str) -> None:
    error = unavailable("/v1/models", answer)
    assert isinstance(error, ListUnavailable)
    assert words in error.message


@pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"1" + b"0" * 400])
def test_a_list_with_an_absurd_number_is_read(number: bytes) -> None:
    found = document(QueryAnswer(status=200, body=b'{"data":[{"id":"m","context_length":%b}]}' % number))
    assert [(each["id"], whole(each["context_length"])) for each in entries(found, "data")] == [("m", 0)]
