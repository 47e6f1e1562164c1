"""YAML text as plain values: scalars, anchors, and the limits."""

from __future__ import annotations

import pytest

from hostler.profiles.yaml_config import DocumentError, parse
from hostler.profiles.yaml_values import MAX_DEPTH, MAX_NODES


def error_of(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        parse(text, "x.yaml", env={})
    return str(caught.value)


def test_rejects_an_anchor_within_itself() -> None:
    assert "an anchor may not contain itself" in error_of("gateway: &a\n  listen: [*a]\n")


def test_rejects_a_billion_laughs() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert f"more than {MAX_NODES} values" in error_of("\n".join(lines))


def test_nothing_is_read_beyond_the_limits() -> None:
    # The brackets that are not closed are further mistakes, which are not reached.
    assert f"x.yaml:2: more than {MAX_NODES} values" in error_of("a:\n [" + "b," * (MAX_NODES + 5))
    assert f"x.yaml:2: nested deeper than {MAX_DEPTH} levels" in error_of("a:\n " + "[" * (MAX_DEPTH + 5))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 5, 3000])
def test_rejects_deep_nesting(depth: int) -> None:
    assert "nested deeper than" in error_of("a: " + "[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0x10", 16), ("0o17", 15), ("010", 10), ("1_000", 1000), ("+1", 1), ("1e3", 1000.0), ("-.inf", float("-inf")),
        ("9223372036854775807", 2**63 - 1), ("9223372036854775808", "9223372036854775808"), ("-0x8000000000000000", "-0x8000000000000000"),
        ("9" * 5000, "9" * 5000), ("~", None), ("2020-01-01", "2020-01-01"), ("._", "._"), ("1:30", "1:30"), ("'1'", "1"), ("True", True),
    ],
)  # fmt: skip
def test_reads_scalars_as_yaml_1_2(written: str, value: object) -> None:
    assert parse(f"a: {written}", "x", env={}).value == {"a": value}


def test_an_anchor_may_be_redefined() -> None:
    assert parse("a: &x 1\nb: *x\nc: &x 2\nd: *x", "x", env={}).value == {"a": 1, "b": 1, "c": 2, "d": 2}
