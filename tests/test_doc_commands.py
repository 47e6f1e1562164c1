"""Every `hostler` command in a document exists, with its options and as many arguments as it takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from hostler.gateway.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for pattern in ("*.md", "docs/*.md", "deploy/*.md", "bench/*.md") for path in ROOT.glob(pattern))
COMMANDS: Any = typer.main.get_command(app)


def mistake(words: list[str], *, complete: bool) -> str | None:
    """What is wrong with a command line of `hostler`. `complete`: it can be run as it is, so that no argument may miss."""
    command, name, rest = COMMANDS, "hostler", list(words)
    while hasattr(command, "commands"):
        if rest and rest[0] in {option for each in command.params for option in each.opts} | {"--help"}:
            return None
        if not rest:
            return f"{name} needs a command" if complete and name != "hostler" else None
        name, word = f"{name} {rest[0]}", rest.pop(0)
        if word not in command.commands:
            return f"there is no command {name}"
        command = command.commands[word]
    options = {spelling: each for each in command.params for spelling in (*each.opts, *each.secondary_opts)}
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    values = 0
    while rest:
        word = rest.pop(0)
        if word == "--":
            values += len(rest)
            break
        if not word.startswith("-") or word == "-":
            values += 1
            continue
        spelling, equals, _ = word.partition("=")
        if spelling == "--help":
            continue
        if spelling not in options:
            return f"{name} has no option {spelling}"
        if not options[spelling].is_flag and not equals:
            if not rest:
                if complete:
                    return f"{spelling} needs a value"
                break
            rest.pop(0)
    if all(each.nargs != -1 for each in arguments) and values > len(arguments):
        return f"{name} takes {len(arguments)} arguments, not {values}"
    if complete and values < sum(each.required for each in arguments):
        return f"{name} needs {', '.join(each.name for each in arguments if each.required)}"
    return None


def in_blocks(text: str) -> Iterator[str]:
    """The command lines in blocks of shell."""
    for found in re.finditer(r"^ *```(sh|console)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in found[2].replace("\\\n", " ").splitlines():
            if found[1] == "console" and not line.lstrip().startswith("$ "):
                continue  # output
            yield from re.split(r"&&|\|\||[|;]", re.sub(r"\s#.*", "", line.strip().removeprefix("$ ")))


def in_text(text: str) -> Iterator[str]:
    """The command lines in running text."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"(?<!`)`(hostler [^`]+)`", prose)


def own_words(line: str) -> list[str] | None:
    """What follows `hostler` in a command line, perhaps behind variables and other programs; `None` if it is none."""
    if not re.search(r"(^|[\s/])hostler(\s|$)", line):
        return None
    words = shlex.split(
        re.sub(r"\s\d?>{1,2}\s*\S+", "", line.replace("\\|", "|")), comments=True
    )  # without redirections
    for index, word in enumerate(words):
        is_user = index > 0 and words[index - 1] in ("-u", "-o", "-g")
        if re.fullmatch(r"(.*/bin/)?hostler", word) and not is_user:
            return words[index + 1 :]
    return None


def lines() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in dict.fromkeys(in_blocks(text)):
            if own_words(line) is not None:
                yield pytest.param(line, True, id=f"{page.relative_to(ROOT)}: {line.strip()}")
        for line in dict.fromkeys(in_text(text)):
            yield pytest.param(line, False, id=f"{page.relative_to(ROOT)}: `{line}`")


@pytest.mark.parametrize(("line", "complete"), [*lines()])
def test_a_command_in_a_document_exists(line: str, complete: bool) -> None:
    words = own_words(line)
    assert words is not None
    # Signs of a synopsis: `MODEL...`, `[FILE]`, `claude|codex`, `…`.
    plain = [word for word in words if not re.match(r"[\[…|]|.*…$", word)]
    assert mistake(plain, complete=complete) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hostler up ~/models --save", None),
        ("hostler lunch claude", "there is no command hostler lunch"),
        ("hostler keys", "hostler keys needs a command"),
        ("hostler keys add", "hostler keys add needs name"),
        ("hostler keys add a b", "hostler keys add takes 1 arguments, not 2"),
        ("hostler keys add a --modell x", "hostler keys add has no option --modell"),
        ("hostler keys add a --model", "--model needs a value"),
        ("A=b sudo hostler keys add a --model=x --local-only", None),
        ("hostler launch claude -- --anything", None),
    ],
)
def test_mistakes_in_commands_are_found(line: str, expected: str | None) -> None:
    assert mistake(own_words(line) or [], complete=True) == expected
