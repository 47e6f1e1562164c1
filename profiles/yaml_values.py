"""Reads plain values and their lines from YAML text; rejects everything that is not safe and plain.

Apart from `yaml_config` since importing ruamel takes 0.1 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hostler.profiles.yaml_config import MAX_INT, DocumentError, KeyPath, Values, dotted

MAX_CHARACTERS = 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 64

_SUBSTITUTION = re.compile(r"\$\$|\$\{([^}]*)\}")
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_NOT_TEXT = "contains half of a surrogate pair, which is not text"
#: What else stands in `${}` in the templates of engines: their variables and macros, replaced later.
_TEMPLATE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_TEMPLATE_SECTIONS = frozenset({"engines", "macros"})
_TEMPLATE_KEYS = frozenset({"args", "env", "model", "mmproj", "draft"})
#: Larger numbers stay text, and so does what has more digits.
_WHOLE = re.compile(r"[-+]?\d{1,40}")
_TAG = "tag:yaml.org,2002:"


def read_values(text: str, source: str, env: Mapping[str, str], errors: list[DocumentError] | None = None) -> Values:
    """The values of one document. Raises `DocumentError`, except for variables if there are `errors` to add to.

    Rejects custom tags, duplicate keys, anchors that contain themselves, and documents beyond the limits above.
    """
    if len(text) > MAX_CHARACTERS:
        raise DocumentError(source, None, "", f"more than {MAX_CHARACTERS} characters")
    return _NodeReader(source, env, errors).values(_compose(text, source))


class _BeyondLimit(Exception):
    """The document is too large, at this line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _LimitedComposer(Composer):
    """Ends at the limits: reading what lies beyond them takes a minute for each megabyte."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._values = 0
        self._level = -1

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_key = index is None and isinstance(parent, MappingNode)
        self._values += not is_key
        self._level += 1
        try:
            if self._values > MAX_NODES:
                raise self._beyond(f"more than {MAX_NODES} values")
            if self._level > MAX_DEPTH:
                raise self._beyond(f"nested deeper than {MAX_DEPTH} levels")
            return super().compose_node(parent, index)
        finally:
            self._level -= 1

    def _beyond(self, message: str) -> _BeyondLimit:
        return _BeyondLimit(self.parser.peek_event().start_mark.line + 1, message)


def _compose(text: str, source: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _LimitedComposer
    # YAML 1.2 allows an anchor to be redefined; ruamel would print a warning.
    yaml.composer.warn_double_anchors = False
    try:
        root: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not valid YAML"
        if r"'\t'" in problem:
            problem += "; indent with spaces instead of tabs"
        raise DocumentError(source, mark.line + 1 if mark else None, "", f"not valid YAML: {problem}") from None
    except YAMLError as error:
        raise DocumentError(source, None, "", f"not valid YAML: {str(error).splitlines()[0]}") from None
    except _BeyondLimit as error:
        raise DocumentError(source, error.line, "", str(error)) from None
    except RecursionError:
        raise DocumentError(source, None, "", f"nested deeper than {MAX_DEPTH} levels") from None
    return root


class _NodeReader:
    """Converts the nodes to values and records lines and variables."""

    def __init__(self, source: str, env: Mapping[str, str], errors: list[DocumentError] | None) -> None:
        self._source = source
        self._env = env
        self._errors = errors
        self._nodes = 0
        self._lines: dict[KeyPath, int] = {(): 1}
        self._written: dict[KeyPath, str] = {}
        self._unquoted: dict[KeyPath, Any] = {}
        self._empty: dict[KeyPath, str] = {}
        self._secrets: dict[str, str] = {}
        self._omitted: set[KeyPath] = set()

    def values(self, root: Node | None) -> Values:
        value = {} if root is None else self.read(root, (), ())
        return Values(
            value=value,
            lines=self._lines,
            written=self._written,
            unquoted=self._unquoted,
            empty=self._empty,
            secrets=self._secrets,
            omitted=frozenset(self._omitted),
        )

    def read(self, node: Node, path: KeyPath, above: tuple[Node, ...]) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(node, path, f"more than {MAX_NODES} values, counting anchors each time they are used")
        if len(above) > MAX_DEPTH:
            raise self._error(node, path, f"nested deeper than {MAX_DEPTH} levels")
        if any(node is other for other in above):
            raise self._error(node, path, "an anchor may not contain itself")
        if isinstance(node, MappingNode):
            self._check_tag(node, path, "map")
            items = [(key, self._below(value, (*path, key), node, above)) for key, value in self._items(node, path)]
            return {key: value for key, value in items if (*path, key) not in self._omitted}
        if isinstance(node, SequenceNode):
            self._check_tag(node, path, "seq")
            values = []
            for index, item in enumerate(node.value):
                self._lines[(*path, index)] = item.start_mark.line + 1
                values.append(self._below(item, (*path, index), node, above))
            return [value for index, value in enumerate(values) if (*path, index) not in self._omitted]
        if not isinstance(node, ScalarNode):
            raise self._error(node, path, "not a mapping, a list or a plain value")
        return self._scalar(node, path)

    def _below(self, node: Node, path: KeyPath, parent: Node, above: tuple[Node, ...]) -> Any:
        return self.read(node, path, (*above, parent))

    def _items(self, node: MappingNode, path: KeyPath) -> Iterator[tuple[str, Node]]:
        """The pairs of a mapping; those merged by `<<` come last and never override its own."""
        own: dict[str, int] = {}
        merged: list[Node] = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise self._error(key, path, "a key must be plain text")
            if key.tag == _TAG + "merge":
                merged.append(value)
                continue
            line = key.start_mark.line + 1
            if not _is_text(key.value):
                raise DocumentError(self._source, line, dotted(path), f"a key {_NOT_TEXT}")
            if key.value in own:
                raise DocumentError(
                    self._source,
                    line,
                    dotted((*path, key.value)),
                    f"duplicate key, first defined in line {own[key.value]}",
                )
            own[key.value] = line
            self._lines[(*path, key.value)] = line
            yield key.value, value
        yield from self._merged(merged, own, path)

    def _merged(self, sources: list[Node], own: dict[str, int], path: KeyPath) -> Iterator[tuple[str, Node]]:
        for source in sources:
            for mapping in source.value if isinstance(source, SequenceNode) else [source]:
                if not isinstance(mapping, MappingNode):
                    raise self._error(mapping, path, "<< takes an anchored mapping or a list of them")
                for key, value in mapping.value:
                    if not isinstance(key, ScalarNode) or not _is_text(key.value) or key.tag == _TAG + "merge":
                        raise self._error(key, path, "a mapping merged by << may not merge others itself")
                    if key.value not in own:
                        own[key.value] = self._lines[(*path, key.value)] = key.start_mark.line + 1
                        yield key.value, value

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        self._check_tag(node, path, "null", "bool", "int", "float", "str", "timestamp")
        if node.tag not in (_TAG + "str", _TAG + "timestamp"):
            return _scalar_value(str(node.tag), node.value)
        try:
            text, values = self._substituted(node, path)
        except DocumentError as error:
            if self._errors is None:
                raise
            self._errors.append(error)
            self._omitted.add(path)
            return None
        if values:
            self._written[path] = node.value
            self._unquoted[path] = _as_unquoted(text)
            if empty := [name for name, value in values.items() if not value.strip()]:
                self._empty[path] = empty[0]
            shown = {value: f"${{env:{name}}}" for name, value in values.items()} | {text: node.value}
            # Shorter ones would match ordinary words of a message.
            self._secrets |= {secret: name for secret, name in shown.items() if len(secret) >= 4}
        return text

    def _substituted(self, node: ScalarNode, path: KeyPath) -> tuple[str, dict[str, str]]:
        values: dict[str, str] = {}

        def one(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            if _is_template(path) and _TEMPLATE_NAME.fullmatch(match[1]):
                return match[0]
            if (variable := _VARIABLE.fullmatch(match[1])) is None:
                raise self._error(
                    node,
                    path,
                    f"{match[0]} is not a variable: write ${{env:NAME}} for a variable, or ${match[0]} for the text",
                )
            if (value := self._env.get(variable[1])) is None:
                raise self._error(node, path, f"the environment variable {variable[1]} is not set")
            values[variable[1]] = value
            return value

        text = _SUBSTITUTION.sub(one, node.value)
        if not _is_text(text):
            raise self._error(node, path, _NOT_TEXT)
        return text, values

    def _check_tag(self, node: Node, path: KeyPath, *allowed: str) -> None:
        tag = str(node.tag)
        if tag not in [_TAG + name for name in allowed]:
            raise self._error(node, path, f"the tag {tag.replace(_TAG, '!!')} is not allowed")

    def _error(self, node: Node, path: KeyPath, message: str) -> DocumentError:
        line = self._lines.get(path, node.start_mark.line + 1)
        return DocumentError(self._source, line, dotted(path), message)


def _is_text(text: str) -> bool:
    """Whether it can be encoded: an escape may be half a character, a variable may not be UTF-8."""
    return not any("\ud800" <= each <= "\udfff" for each in text)


def _is_template(path: KeyPath) -> bool:
    """Whether the value at `path` is a command, or part of one. A manifest may have no `profiles:` key."""
    return path[:1] != () and (path[0] in _TEMPLATE_SECTIONS or any(step in _TEMPLATE_KEYS for step in path[1:3]))


def _scalar_value(tag: str, text: str) -> Any:
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case "int":
            digits = text.replace("_", "").lower()
            try:
                number = int(digits, 0)
            except ValueError:  # 0755 is decimal in YAML 1.2
                number = int(digits) if _WHOLE.fullmatch(digits) else MAX_INT + 1
            return number if abs(number) <= MAX_INT else text
        case _:
            lowered = re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.replace("_", "").lower())
            try:
                return float(lowered)
            except ValueError:  # `._` matches the pattern of a number, but is not one
                return text


def _as_unquoted(text: str) -> Any:
    """What YAML would make of `text` without quotes."""
    if re.fullmatch(r"true|false", text, re.IGNORECASE):
        return text.lower() == "true"
    if _WHOLE.fullmatch(text):
        return number if abs(number := int(text)) <= MAX_INT else text
    if re.fullmatch(r"[-+]?\d{1,40}\.\d{1,40}", text):
        return float(text)
    return text
