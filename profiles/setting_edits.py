"""Changes a single setting in the text of a configuration file, in which all else stays as it is, comments included."""

from __future__ import annotations

import contextlib
from typing import Any

from hostler.profiles.store import escape_dollars
from hostler.profiles.yaml_config import Document, DocumentError, parse
from hostler.profiles.yaml_nodes import AnyEnvironment, child, compose, last_line, round_trip, to_yaml


def with_setting(text: str, source: str, section: str, key: str, value: str) -> str:
    """The text of the file `source` in which `key` of a section has this value. Raises `DocumentError`."""
    document = _parsed(text, source)
    values = {} if document.value is None else document.value
    if not isinstance(values, dict):
        raise document.error((), "expected a mapping")
    if not isinstance(values.get(section) or {}, dict):
        raise document.error((section,), "expected a mapping")
    wanted = {**values, section: {**(values.get(section) or {}), key: value}}
    written = escape_dollars(value)
    for method in (_replaced, _inserted, _appended, _rewritten):
        new = method(text, section, key, written)
        if new is None:
            continue
        with contextlib.suppress(DocumentError):
            if _parsed(new, source).value == wanted:
                return new
    raise document.error((section, key), "could not be changed automatically; edit the file by hand")


def _parsed(text: str, source: str) -> Document:
    return parse(text, source, env=AnyEnvironment())


def _replaced(text: str, section: str, key: str, value: str) -> str | None:
    """With another value where the key has one on a single line."""
    node = child(child(compose(text), section), key)
    if node is None or node.id != "scalar" or node.start_mark.line != node.end_mark.line or not node.value:
        return None
    return text[: node.start_mark.index] + _scalar(value) + text[node.end_mark.index :]


def _inserted(text: str, section: str, key: str, value: str) -> str | None:
    """With a line below the last one of the section."""
    node = child(compose(text), section)
    if node is None or node.id != "mapping" or node.flow_style or not node.value or child(node, key) is not None:
        return None
    lines = text.splitlines(keepends=True)
    last = last_line(node)
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    ending = "\r\n" if lines[last].endswith("\r\n") else "\n"
    line = " " * node.value[0][0].start_mark.column + f"{key}: {_scalar(value)}{ending}"
    return "".join([*lines[: last + 1], line, *lines[last + 1 :]])


def _appended(text: str, section: str, key: str, value: str) -> str | None:
    """With the section at the end."""
    root = compose(text)
    if child(root, section) is not None or (root is not None and root.flow_style):
        return None
    ending = "\r\n" if "\r\n" in text else "\n"
    gap = ending if text and not text.endswith("\n") else ""
    return f"{text}{gap}{section}:{ending}  {key}: {_scalar(value)}{ending}"


def _rewritten(text: str, section: str, key: str, value: str) -> str | None:
    def change(root: Any) -> None:
        if not root.get(section):
            root[section] = {}
        root[section][key] = value

    return None if compose(text) is None else round_trip(text, change)


def _scalar(value: str) -> str:
    """The value as YAML has it on one line."""
    return to_yaml({"x": value}).removeprefix("x: ").rstrip("\n")
