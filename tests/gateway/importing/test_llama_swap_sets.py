"""llama-swap's groups and matrix, written out."""

from __future__ import annotations

import pytest

from hostler.gateway.importing.llama_swap_sets import InvalidExpression, SwapGroup, rules_of, written_out


@pytest.mark.parametrize(
    ("expression", "sets"),
    [
        ("a", [("a",)]),
        ("a | b", [("a",), ("b",)]),
        ("a & b | c", [("a", "b"), ("c",)]),
        ("(a | b) & (c | d)", [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]),
        ("a & a", [("a",)]),
    ],
)
def test_an_expression_is_written_out(expression: str, sets: list[tuple[str, ...]]) -> None:
    assert list(written_out({"s": expression})) == sets


def test_an_expression_may_refer_to_another_set() -> None:
    assert written_out({"x": "a | b", "y": "+x & c"}) == (("a",), ("b",), ("a", "c"), ("b", "c"))


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "a model is missing"),
        ("a &", "a model is missing"),
        ("(a", "not closed"),
        ("a b", "not expected"),
        ("a % b", "not expected"),
        ("+s", "contains itself"),
        ("+t", "there is no set t"),
        ("(" * 100 + "a" + ")" * 100, "nested too deep"),
        (" & ".join(f"(a{n} | b{n})" for n in range(40)), "more than 512 sets"),
    ],
)
def test_an_invalid_expression_is_refused(expression: str, reason: str) -> None:
    with pytest.raises(InvalidExpression, match=reason):
        written_out({"s": expression})


def test_groups_that_swap_alone_need_no_sets() -> None:
    groups = {"g": SwapGroup(members=("a", "b"), exclusive=False)}
    rules = rules_of(groups, ["a", "b"])
    assert rules.groups == {"g": ("a", "b")} and rules.sets == (("a", "b"),)


def test_models_of_no_group_run_alone() -> None:
    groups = {"g": SwapGroup(members=("a", "b"), swap=False)}
    assert rules_of(groups, ["a", "b", "c"]).sets == (("a", "b"), ("c",))
