"""Command templates: variables, groups and macros."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.profiles.templates import TemplateError, TemplateWord, apply_macros, expand, variables

VALUES = {"port": "8100", "model": "/m.bin", "threads": "", "name": "a"}


@pytest.mark.parametrize(
    ("words", "expanded"),
    [
        (("--port", "${port}"), ("--port", "8100")),
        (("--listen=127.0.0.1:${port}/${name}",), ("--listen=127.0.0.1:8100/a",)),
        (("x", ("-t", "${threads}"), "y"), ("x", "y")),
        (("x", ("-m", "${model}")), ("x", "-m", "/m.bin")),
        (("$HOME", "$5"), ("$HOME", "$5")),
        (("~/x", "--file=~/y", "a~/z"), (f"{Path.home()}/x", f"--file={Path.home()}/y", "a~/z")),
    ],
)
def test_words_are_expanded(words: tuple[TemplateWord, ...], expanded: tuple[str, ...]) -> None:
    assert expand(words, VALUES) == expanded


def test_an_unknown_variable_is_named_with_those_that_exist() -> None:
    with pytest.raises(TemplateError, match=r"\$\{prot\} is unknown; variables are: model, name, port, threads"):
        expand(("${prot}",), VALUES)


def test_a_macro_of_several_words_is_several_arguments() -> None:
    macros = {"gpu": ("--gpus", "all"), "flags": ("${gpu}", "--name=${name}")}
    assert apply_macros(("run", "${flags}", ("-m", "${model}")), macros) == (
        "run", "--gpus", "all", "--name=${name}", ("-m", "${model}"),
    )  # fmt: skip


def test_a_macro_of_several_words_inside_of_a_word_is_joined() -> None:
    assert apply_macros(("sh -c ${all}",), {"all": ("a", "b")}) == ("sh -c a b",)


def test_macros_that_contain_each_other_are_refused() -> None:
    with pytest.raises(TemplateError, match="contains itself"):
        apply_macros(("${a}",), {"a": "${b}", "b": "${a}"})


def test_variables_of_groups_are_found() -> None:
    assert variables(("${a}", ("-x", "${b}${c}"))) == {"a", "b", "c"}
