"""YAML text to typed values, with the file and the line in every complaint.

Nothing here reads a file or knows what the settings mean.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

T = TypeVar("T")
Path = tuple[str | int, ...]

MAX_CHARACTERS = 4 * 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 64

_UNITS = {"": 1, "b": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_SUBSTITUTION = re.compile(r"\$\$|\$\{([^}]*)\}")
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_SECRET_KEY = re.compile(r"token|key|secret|password|authorization", re.IGNORECASE)
_AT = re.compile(r"^(?P<message>.*?)(?: - at `(?P<key>key in )?\$?(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_TAG = "tag:yaml.org,2002:"
_PLAIN_WORDS = {"array": "a list", "object": "a mapping", "null": "nothing"}


class Size(int):
    """A number of bytes; in a file either a plain integer or a string such as `9GiB`, `512MB`, `4096`."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """The size that an integer or a string means. Raises `ValueError` for anything else, and for negative ones.

        `KiB`, `MiB`, `GiB`, `TiB` and the bare letters are powers of 1024, `kB`, `MB`, `GB`, `TB` powers of 1000.
        """
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            number, unit = match.groups()
            if (factor := _UNITS.get(unit.lower())) is not None:
                return cls(int(number) * factor if number.isdigit() else round(float(number) * factor))
        raise ValueError(f"expected a size such as 9GiB, 512MB or 4096, got {_shown(value)}")


class DocumentError(Exception):
    """A document is not what it should be; `str()` reads `hostler.yaml:7: gateway.queue.max_waiting: ...`."""

    def __init__(self, source: str, line: int | None, path: str, message: str) -> None:
        super().__init__(source, line, path, message)
        self.source = source
        self.line = line
        self.path = path
        self.message = message

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class Document:
    """A parsed document: plain values, and where each of them stands."""

    def __init__(self, source: str, value: Any, lines: Mapping[Path, int], written: Mapping[Path, str]) -> None:
        self.source = source
        self.value = value
        self._lines = lines
        self._written = written
        self._from_env: dict[Path, Any] = {}
        self._secrets: dict[str, str] = {}

    def line(self, *path: str | int) -> int | None:
        """The line of the value at `path`, or of the nearest thing around it that the document has."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path)

    def error(self, path: Path, message: str) -> DocumentError:
        """`message` about the value at `path`, with its place."""
        return DocumentError(self.source, self.line(*path), dotted(path), self._hide(message))

    def to(self, shape: type[T]) -> T:
        """The document as a `shape`. Raises `DocumentError` for the first thing that does not fit."""
        value = self.value
        unquoted = dict(self._from_env)
        while True:
            try:
                return msgspec.convert(value, shape, dec_hook=_decode)
            except msgspec.ValidationError as error:
                path, message, at_key = _locate(error, value, shape)
                # A variable is always text; where a number or a switch is expected, it is read as YAML would.
                if not at_key and path in unquoted:
                    value = _replaced(value, path, unquoted.pop(path))
                    continue
                raise self._explained(path, message, value, shape) from None

    def _explained(self, path: Path, message: str, value: Any, shape: Any) -> DocumentError:
        if match := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
            name = match[1]
            return self.error((*path, name), _unknown_key(name, _known_keys(shape, path)))
        if match := re.fullmatch(r"Object missing required field `(.*)`", message, re.DOTALL):
            return self.error(path, f"{match[1]} is missing")
        if match := re.fullmatch(r"Expected `(.*)`, got `(.*)`", message, re.DOTALL):
            wanted, got = match.groups()
            text = f"expected {_words(wanted)}, got {_words(got)}"
            actual = _at(value, path)
            if path in self._written:
                text += f" {self._written[path]}"
            elif (
                not _is_secret(path)
                and isinstance(actual, str | int | float)
                and got in ("str", "int", "float", "bool")
            ):
                text += f" {_shown(actual)}"
                if "str" in wanted.split(" | ") and not isinstance(actual, str):
                    text += " (put it in quotes)"
            return self.error(path, text)
        return self.error(path, message[:1].lower() + message[1:])

    def _hide(self, message: str) -> str:
        for secret, name in self._secrets.items():
            message = message.replace(secret, name)
        return message

    def _came_from_env(self, path: Path, text: str, plain: Any, values: Mapping[str, str]) -> None:
        self._from_env[path] = plain
        self._secrets[text] = self._written[path]
        self._secrets.update({value: f"${{env:{name}}}" for name, value in values.items() if len(value) >= 4})


def load(text: str, source: str, shape: type[T], *, env: Mapping[str, str]) -> T:
    """`text` as a `shape`; `source` is what the complaints call it. Raises `DocumentError`.

    `${env:NAME}` in a value stands for that variable of `env`, `$$` for one dollar sign.
    """
    return parse(text, source, env=env).to(shape)


def schema(shape: Any) -> dict[str, Any]:
    """The JSON Schema of a settings type, for the completion of editors."""
    from hostler.profiles.json_schema import json_schema

    return json_schema(shape)


def dotted(path: Path) -> str:
    """A path as people read it: `backends.lan.models[2]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def parse(text: str, source: str, *, env: Mapping[str, str]) -> Document:
    """`text` as plain values that remember their lines. Raises `DocumentError` for what is not safe, plain YAML.

    Refused are custom tags, duplicate keys, anchors that contain themselves, and documents beyond the limits above.
    """
    lines: dict[Path, int] = {(): 1}
    written: dict[Path, str] = {}
    document = Document(source, {}, lines, written)
    if len(text) > MAX_CHARACTERS:
        raise DocumentError(source, None, "", f"more than {MAX_CHARACTERS} characters")
    root = _compose(text, source)
    if root is not None:
        document.value = _Reader(document, lines, written, env).read(root, (), ())
    return document


def _compose(text: str, source: str) -> Node | None:
    from ruamel.yaml import YAML  # 0.1 s: only when there is something to read
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        root: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not valid YAML"
        raise DocumentError(source, mark.line + 1 if mark else None, "", f"not valid YAML: {problem}") from None
    except YAMLError as error:
        raise DocumentError(source, None, "", f"not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise DocumentError(source, None, "", f"nested deeper than {MAX_DEPTH} levels") from None
    return root


class _Reader:
    """Walks the nodes once and fills the document's maps of lines and of variables."""

    def __init__(
        self, document: Document, lines: dict[Path, int], written: dict[Path, str], env: Mapping[str, str]
    ) -> None:
        self._document = document
        self._lines = lines
        self._written = written
        self._env = env
        self._nodes = 0

    def read(self, node: Node, path: Path, above: tuple[Node, ...]) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(node, path, f"more than {MAX_NODES} values, anchors counted each time they are used")
        if len(above) > MAX_DEPTH:
            raise self._error(node, path, f"nested deeper than {MAX_DEPTH} levels")
        if any(node is other for other in above):
            raise self._error(node, path, "an anchor may not contain itself")
        if isinstance(node, MappingNode):
            self._check_tag(node, path, "map")
            return {key: self._below(value, (*path, key), node, above) for key, value in self._items(node, path)}
        if isinstance(node, SequenceNode):
            self._check_tag(node, path, "seq")
            values = []
            for index, item in enumerate(node.value):
                self._lines[(*path, index)] = item.start_mark.line + 1
                values.append(self._below(item, (*path, index), node, above))
            return values
        if not isinstance(node, ScalarNode):
            raise self._error(node, path, "not a mapping, a list or a plain value")
        return self._scalar(node, path)

    def _below(self, node: Node, path: Path, parent: Node, above: tuple[Node, ...]) -> Any:
        return self.read(node, path, (*above, parent))

    def _items(self, node: MappingNode, path: Path) -> Iterator[tuple[str, Node]]:
        """The pairs of a mapping; those merged in by `<<` come last and never win over its own."""
        from ruamel.yaml.nodes import ScalarNode

        own: dict[str, int] = {}
        merged: list[Node] = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise self._error(key, path, "a key must be plain text")
            if key.tag == _TAG + "merge":
                merged.append(value)
                continue
            line = key.start_mark.line + 1
            if key.value in own:
                raise DocumentError(
                    self._document.source,
                    line,
                    dotted((*path, key.value)),
                    f"stands here a second time, first in line {own[key.value]}",
                )
            own[key.value] = line
            self._lines[(*path, key.value)] = line
            yield key.value, value
        yield from self._merged(merged, own, path)

    def _merged(self, sources: list[Node], own: dict[str, int], path: Path) -> Iterator[tuple[str, Node]]:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        for source in sources:
            for mapping in source.value if isinstance(source, SequenceNode) else [source]:
                if not isinstance(mapping, MappingNode):
                    raise self._error(mapping, path, "<< takes an anchored mapping or a list of them")
                for key, value in mapping.value:
                    if not isinstance(key, ScalarNode) or key.tag == _TAG + "merge":
                        raise self._error(key, path, "a mapping merged by << may not merge others itself")
                    if key.value not in own:
                        own[key.value] = self._lines[(*path, key.value)] = key.start_mark.line + 1
                        yield key.value, value

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        self._check_tag(node, path, "null", "bool", "int", "float", "str", "timestamp")
        if node.tag not in (_TAG + "str", _TAG + "timestamp"):
            return _plain(str(node.tag), node.value)
        text, values = self._substituted(node, path)
        if values:
            self._written[path] = node.value
            self._document._came_from_env(path, text, _resolved(text), values)
        return text

    def _substituted(self, node: ScalarNode, path: Path) -> tuple[str, dict[str, str]]:
        values: dict[str, str] = {}

        def one(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            if (variable := _VARIABLE.fullmatch(match[1])) is None:
                raise self._error(
                    node,
                    path,
                    f"{match[0]} is unknown: write ${{env:NAME}} for a variable, or ${match[0]} for the text",
                )
            if (value := self._env.get(variable[1])) is None:
                raise self._error(node, path, f"the environment variable {variable[1]} is not set")
            values[variable[1]] = value
            return value

        return _SUBSTITUTION.sub(one, node.value), values

    def _check_tag(self, node: Node, path: Path, *allowed: str) -> None:
        tag = str(node.tag)
        if tag not in [_TAG + name for name in allowed]:
            raise self._error(node, path, f"the tag {tag.replace(_TAG, '!!')} is not allowed")

    def _error(self, node: Node, path: Path, message: str) -> DocumentError:
        line = self._lines.get(path, node.start_mark.line + 1)
        return DocumentError(self._document.source, line, dotted(path), message)


def _plain(tag: str, text: str) -> Any:
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case "int":
            digits = text.replace("_", "").lower()
            try:
                return int(digits, 0)
            except ValueError:  # 0755 is seven hundred and fifty-five in YAML 1.2; a huge number stays text
                return int(digits) if re.fullmatch(r"[-+]?\d{1,40}", digits) else text
        case _:
            lowered = text.replace("_", "").lower()
            return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", lowered))


def _resolved(text: str) -> Any:
    """What `text` would be if it stood in the file without quotes."""
    if re.fullmatch(r"true|false", text, re.IGNORECASE):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?\d{1,40}", text):
        return int(text)
    if re.fullmatch(r"[-+]?\d{1,40}\.\d{1,40}", text):
        return float(text)
    return text


def _decode(shape: Any, value: Any) -> Any:
    if shape is Size:
        return Size.parse(value)
    raise NotImplementedError(f"no way to read a {shape!r}")


def _locate(error: msgspec.ValidationError, value: Any, shape: Any) -> tuple[Path, str, bool]:
    """Where the complaint points to. msgspec writes `[...]` for the key of a mapping: the key is found by trial."""
    match = _AT.match(str(error))
    if match is None:
        return (), str(error), False
    path: Path = ()
    for name, index, _unnamed in _STEP.findall(match["path"] or ""):
        if name:
            path = (*path, name)
        elif index:
            path = (*path, int(index))
        else:
            path = (*path, _culprit(str(error), value, shape, path))
            value = _replaced(value, path[:-1], {path[-1]: _at(value, path)})
    return path, match["message"], bool(match["key"])


def _culprit(complaint: str, value: Any, shape: Any, path: Path) -> str | int:
    candidates = _at(value, path)
    if not isinstance(candidates, dict):
        return 0
    for key, item in candidates.items():
        try:
            msgspec.convert(_replaced(value, path, {key: item}), shape, dec_hook=_decode)
        except msgspec.ValidationError as error:
            if str(error) == complaint:
                return str(key)
    return str(next(iter(candidates), ""))


def _at(value: Any, path: Path) -> Any:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _replaced(value: Any, path: Path, new: Any) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        return value | {step: _replaced(value[step], rest, new)}
    if isinstance(value, list) and isinstance(step, int):
        return [*value[:step], _replaced(value[step], rest, new), *value[step + 1 :]]
    return value


def _known_keys(shape: Any, path: Path) -> list[str]:
    """The keys that the mapping at `path` may have: asked of msgspec's own view of the type."""
    info: Any = msgspec.inspect.type_info(shape)
    for step in path:
        info = _narrowed(info)
        if isinstance(info, msgspec.inspect.StructType):
            info = next((field.type for field in info.fields if field.encode_name == step), None)
        elif isinstance(info, msgspec.inspect.DictType):
            info = info.value_type
        else:
            info = getattr(info, "item_type", None)
    info = _narrowed(info)
    return [field.encode_name for field in info.fields] if isinstance(info, msgspec.inspect.StructType) else []


def _narrowed(info: Any) -> Any:
    if isinstance(info, msgspec.inspect.UnionType):
        kinds = (msgspec.inspect.StructType, msgspec.inspect.DictType, msgspec.inspect.CollectionType)
        return next((member for member in info.types if isinstance(member, kinds)), None)
    return info


def _unknown_key(name: str, known: list[str]) -> str:
    if near := difflib.get_close_matches(name, known, n=1):
        return f"unknown key, did you mean {near[0]}?"
    return f"unknown key, known ones are: {', '.join(known)}" if known else "unknown key"


def _words(types: str) -> str:
    names = [_PLAIN_WORDS.get(name, name) for name in types.split(" | ")]
    return " or ".join([name for name in names if name != "nothing"] + ["nothing"] * ("nothing" in names))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_secret(path: Path) -> bool:
    return any(isinstance(step, str) and _SECRET_KEY.search(step) for step in path[-2:])
