"""Writes docs/hostler.1, the manual page, from the commands as they are: `python docs/tools/man_page.py`.

The wheel installs it as share/man/man1/hostler.1. A test compares it with the commands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import typer

from hostler import __version__
from hostler.gateway.cli.main import app
from hostler.gateway.cli.options import EXIT_CODES

PAGE = Path(__file__).parent.parent / "hostler.1"

#: What values are called that have no name of their own.
VALUES: Mapping[type, str] = {str: "TEXT", Path: "PATH", int: "NUMBER", float: "NUMBER"}

PURPOSE = "always-on LLM gateway: one address, many models, every client"

DESCRIPTION = (
    "Hostler gives clients of language models one address that does not go away. Behind it, supervisors start, watch and "
    "switch engines such as llama-server on one or more machines, and other servers answer what these cannot. Clients of "
    "OpenAI, Ollama, Anthropic, llama.cpp and LM Studio each see the server they were written for.",
    "hostler up runs everything in one process. hostler gateway and hostler supervisor are its two halves, for different "
    "machines. All other commands talk to a running gateway, or work on the configuration file.",
)

EXAMPLES = {
    "hostler up ~/models": "Serve the models in a folder, and choose what fits this machine.",
    "hostler get unsloth/Qwen3-8B-GGUF": "Download a model from Hugging Face and add it to the configuration file.",
    "hostler keys add laptop": "Create an API key. The gateway needs one to listen beyond loopback.",
    "hostler switch qwen3-8b": "Load a model and show the progress.",
    "hostler route qwen3-8b --dry-run": "Show which backend would serve a model, and why others would not.",
}

FILES = {
    "./hostler.yaml, /etc/hostler/hostler.yaml": "The configuration file, where neither --config nor HOSTLER_CONFIG names one.",
    "$XDG_CONFIG_HOME/hostler/keys, ~/.config/hostler/keys": "API keys, as hashes.",
    "$STATE_DIRECTORY, $XDG_STATE_HOME/hostler, ~/.local/state/hostler": "What outlasts a restart: costs, usage of keys, "
    "responses, batches, recordings, models that clients created.",
    "$XDG_CACHE_HOME/hostler, ~/.cache/hostler": "Downloaded models and saved conversations.",
}

ENVIRONMENT = {
    "HOSTLER_CONFIG": "The configuration file.",
    "HOSTLER_API_KEY": "The API key that commands send to a running gateway.",
    "HOSTLER_TRACEBACK": "With 1, an internal error shows its traceback.",
    "HF_ENDPOINT, HF_TOKEN": "Address and token of the hub that models are downloaded from.",
    "NO_COLOR": "Without colours.",
}


def manual_page() -> str:
    """The page in roff's man macros."""
    lines = [
        f'.TH HOSTLER 1 "" "Hostler {__version__}" "User Commands"',
        ".SH NAME",
        f"hostler \\- {_text(PURPOSE)}",
        ".SH SYNOPSIS",
        ".B hostler",
        ".I COMMAND",
        "[OPTIONS] [ARGUMENTS]",
        ".SH DESCRIPTION",
        *_paragraphs(DESCRIPTION),
        ".SH COMMANDS",
        *_commands(typer.main.get_command(app), "hostler"),
        ".SH EXIT STATUS",
        *_entries(dict(re.findall(r"(\d+) (.+?)(?:, (?=\d)|\.$)", EXIT_CODES))),
        ".SH ENVIRONMENT",
        *_entries(ENVIRONMENT),
        ".SH FILES",
        *_entries(FILES),
        ".SH EXAMPLES",
        *_entries(EXAMPLES),
        ".SH SEE ALSO",
        "https://github.com/hostler\\-gateway/hostler: the documentation, with every key of the configuration file.",
    ]
    return "\n".join(lines) + "\n"


def _commands(group: Any, name: str) -> Iterator[str]:
    for key, command in group.commands.items():
        if command.hidden:
            continue
        full_name = f"{name} {key}"
        if hasattr(command, "commands"):
            yield from _commands(command, full_name)
            continue
        shown = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
        arguments = [_argument(each) for each in shown if each.param_type_name == "argument"]
        yield f".SS {_text(full_name)}"
        yield f".B {_text(full_name)}"
        yield _text(" ".join(("[OPTIONS]", *arguments)))
        yield ".PP"
        yield from _paragraphs(command.help.partition(" Exit codes: ")[0].split("\n\n"))
        # Not as typer writes types, which differs between its versions.
        types = inspect.signature(command.callback, eval_str=True).parameters
        for option in shown:
            if option.param_type_name == "option":
                yield from _entries({_option(option, types[option.name].annotation): option.help})


def _argument(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).removesuffix("...").strip("[]")
    name = name if argument.required else f"[{name}]"
    return f"{name}..." if argument.nargs == -1 else name


def _option(option: Any, annotation: Any) -> str:
    spellings = ", ".join((*sorted(option.opts, key=lambda each: (len(each), each)), *option.secondary_opts))
    if option.is_flag:
        return spellings
    kind = _value_type(annotation)
    if option.metavar is None and issubclass(kind, StrEnum):
        return f"{spellings} {'|'.join(kind)}"
    return f"{spellings} {option.metavar or VALUES[kind]}"


def _value_type(annotation: Any) -> type:
    """The type of one value: that of `Annotated[list[str] | None, ...]` is `str`."""
    inner = [each for each in get_args(annotation) if each is not NoneType]
    return _value_type(inner[0]) if inner else annotation


def _entries(entries: Mapping[str, str]) -> Iterator[str]:
    for term, meaning in entries.items():
        yield ".TP"
        yield f".B {_text(term)}"
        yield _text(meaning[:1].upper() + meaning[1:].rstrip(".") + ".")


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        if index:
            yield ".PP"
        yield _text(text)


def _text(text: str) -> str:
    """One line of roff: no control characters, hyphens that can be copied."""
    line = " ".join(text.replace("\b", "").split())
    line = line.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("`", "").replace("^", "\\(ha")
    return re.sub(r"^([.'])", r"\\&\1", line)


if __name__ == "__main__":
    PAGE.write_text(manual_page(), encoding="utf-8")
