"""Converts YAML text to typed values, with file and line in every error message.

Nothing here reads a file or knows what the settings mean.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
KeyPath = tuple[str | int, ...]

_UNITS = {"": 1, "b": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"([0-9]{1,40}(?:\.[0-9]{1,40})?)\s*([A-Za-z]*)")
#: The largest whole number of a setting: one that other processes and programs can read as well.
MAX_INT = 2**63 - 1
_LARGE = re.compile(r"[-+]?\d{19,}")
_SECRET_KEY = re.compile(r"token|key|secret|password|authorization", re.IGNORECASE)
#: Keys of settings that hold a secret, or name a file with one. `env` of a profile may hold anything.
_SECRET_SETTING = re.compile(r"(api_keys?|token)(_file)?|authorization", re.IGNORECASE)
#: Why a text is no secret, without showing it. Such characters come from copied text, as in `sk-12…`.
NOT_SENDABLE = "contains characters that no header can carry; copy the key once more"
#: What an empty variable leaves of a secret.
_EMPTY_SECRETS = ("", "bearer", "basic")
_AT = re.compile(r"^(?P<message>.*?)(?: - at `(?P<key>key in )?\$?(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_EMPTY: Mapping[str, Any] = {"Expected `object`, got `null`": {}, "Expected `array`, got `null`": []}
_TYPE_NAMES = {
    "array": "a list",
    "object": "a mapping",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
}
#: As many mistakes of one document are reported.
_MAX_ERRORS = 50
_BOUNDS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}


class Size(int):
    """A number of bytes; in a file a plain integer or a string such as `9GiB`, `512MB`, `4096`."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """Raises `ValueError` for anything but a size, and for negative ones.

        `KiB`, `MiB`, `GiB`, `TiB` and the bare letters are powers of 1024, `kB`, `MB`, `GB`, `TB` powers of 1000.
        """
        size = -1
        if isinstance(value, int) and not isinstance(value, bool):
            size = value
        elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            number, unit = match.groups()
            if (factor := _UNITS.get(unit.lower())) is not None:
                size = int(number) * factor if number.isdigit() else round(float(number) * factor)
        if 0 <= size <= MAX_INT:
            return cls(size)
        raise ValueError(f"expected a size such as 9GiB, 512MB or 4096, got {_excerpt(value)}")


class DocumentError(Exception):
    """An invalid document; `str()` reads `hostler.yaml:7: gateway.queue.max_waiting: ...`."""

    def __init__(self, source: str, line: int | None, path: str, message: str, *, keys: KeyPath = ()) -> None:
        super().__init__(source, line, path, message)
        self.source = source
        self.line = line
        self.path = path
        self.message = message
        self.keys = keys

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """A document's values, the line of each, and those that come from environment variables.

    `written` maps the path of such a value to its text in the file (`${env:NAME}`), `unquoted` to what YAML would
    make of the value without quotes, and `empty` is a variable in it that is empty. `secrets` maps texts that must not be
    shown to what is shown instead. `omitted` are the paths of values that could not be read.
    """

    value: Any
    lines: dict[KeyPath, int]
    written: dict[KeyPath, str]
    unquoted: dict[KeyPath, Any]
    empty: dict[KeyPath, str]
    secrets: dict[str, str]
    omitted: frozenset[KeyPath] = frozenset()


class Document:
    """A parsed document: plain values with their positions."""

    def __init__(self, source: str, values: Values) -> None:
        self.source = source
        self.value = values.value
        self._values = values

    def line(self, *path: str | int) -> int | None:
        """The line of the value at `path`, or of the closest parent that exists."""
        while path and path not in self._values.lines:
            path = path[:-1]
        return self._values.lines.get(path)

    def error(self, path: KeyPath, message: str) -> DocumentError:
        """An error about the value at `path`, with its position and without secrets."""
        return DocumentError(self.source, self.line(*path), dotted(path), self._hide(message), keys=path)

    def secret_errors(self) -> list[DocumentError]:
        """Errors for tokens, keys and files of them that are empty, as a whole or one of their variables, which is not the
        same as none, and for those with invisible characters, or others that no header can have."""
        found = ((path, _value_at(self.value, path)) for path in self._values.lines)
        mistakes = ((path, self._secret_mistake(path, value)) for path, value in found if isinstance(value, str))
        return [self.error(path, mistake) for path, mistake in mistakes if mistake is not None]

    def _secret_mistake(self, path: KeyPath, value: str) -> str | None:
        in_env = "env" in path and _is_secret(path)
        if not in_env and not _holds_secret(path):
            return None
        if not in_env and value.strip().lower() in _EMPTY_SECRETS:
            origin = f"{self._values.written[path]} is empty" if path in self._values.written else "is empty"
            return f"{origin}; give it a value, or remove the line"
        if path in self._values.empty:
            return f"${{env:{self._values.empty[path]}}} is empty; give it a value, or remove it"
        # A program may want a certificate, which has lines.
        text = re.sub(r"[\r\n\t]", "", value) if in_env else value
        if not text.isprintable():
            return "contains control characters or invisible ones; write it without them"
        is_sent = not in_env and not str(path[-1]).endswith("_file")
        return None if text.isascii() or not is_sent else NOT_SENDABLE

    def to(self, shape: type[T]) -> T:
        """The document as a `shape`. Raises `DocumentError` for the first value that does not fit."""
        errors: list[DocumentError] = []
        value = self._convert(shape, errors, limit=1)
        if errors or value is None:
            raise errors[0]
        return value

    def fit(self, shape: type[T], errors: list[DocumentError], *, omit: Iterable[KeyPath] = ()) -> T | None:
        """The document as a `shape`, without the values at `omit` and those that do not fit: they are added to `errors`.

        `None` if nothing is left. Of a list only the first such value is reported.
        """
        return self._convert(shape, errors, limit=_MAX_ERRORS, omit=omit)

    def _convert(
        self, shape: type[T], errors: list[DocumentError], limit: int, omit: Iterable[KeyPath] = ()
    ) -> T | None:
        value = self.value
        unquoted = dict(self._values.unquoted)
        removed = {*self._values.omitted, *map(_in_mapping, omit)}
        for path in removed:
            value = _without(value, path)
        while True:
            try:
                return msgspec.convert(value, shape, dec_hook=_decode)
            except msgspec.ValidationError as error:
                path, message, at_key = _locate(error, value, shape)
                # A section whose lines are all commented out is empty, not null.
                if message in _EMPTY:
                    value = _with_value(value, path, _EMPTY[message])
                    continue
                # A variable is always text; where a number or a boolean is expected, it is read as YAML would read it.
                if not at_key and path in unquoted:
                    value = _with_value(value, path, unquoted.pop(path))
                    continue
                missing = re.fullmatch(r"Object missing required field `(.*)`", message, re.DOTALL)
                if missing is None or (*path, missing[1]) not in removed:
                    errors.append(self._explain(path, message, value, shape))
                unknown = re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL)
                broken = _in_mapping((*path, unknown[1]) if unknown else path)
                if not broken or len(errors) >= limit:
                    return None
                removed.add(broken)
                value = _without(value, broken)

    def _explain(self, path: KeyPath, message: str, value: Any, shape: Any) -> DocumentError:
        if match := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
            name = match[1]
            return self.error((*path, name), _unknown_key(name, _known_keys(shape, path)))
        if match := re.fullmatch(r"Object missing required field `(.*)`", message, re.DOTALL):
            return self.error(path, f"{match[1]} is missing")
        if match := re.fullmatch(r"Expected `(.*)`, got `(.*)`", message, re.DOTALL):
            expected, got = match.groups()
            text = f"expected {_type_names(expected)}, got {self._shown(path, value, got)}"
            if "str" in expected.split(" | ") and got in ("int", "float", "bool") and not _is_secret(path):
                text += " (put it in quotes)"
            if "int" in expected.split(" | ") and got == "str" and _LARGE.fullmatch(str(_value_at(value, path))):
                text += f" (the largest is {MAX_INT})"
            return self.error(path, text)
        if match := re.fullmatch(r"Expected `(int|float)` (>=|>|<=|<) (\S+)", message):
            kind, relation, bound = match.groups()
            return self.error(path, f"must be {_BOUNDS[relation]} {bound}, got {self._shown(path, value, kind)}")
        if message.startswith("Invalid enum value") and (known := _known_values(shape, path)):
            return self.error(path, f"expected {' or '.join(known)}, got {self._shown(path, value, 'str')}")
        return self.error(path, message[:1].lower() + message[1:])

    def _shown(self, path: KeyPath, value: Any, kind: str) -> str:
        """The value at `path` as error messages show it: not if it is long or may be secret."""
        if path in self._values.written:
            return self._values.written[path]
        if kind in ("str", "int", "float", "bool") and not _is_secret(path):
            return _excerpt(_value_at(value, path))
        return _type_names(kind)

    def _hide(self, message: str) -> str:
        for secret, name in self._values.secrets.items():
            message = message.replace(secret, name)
        return message


def load(text: str, source: str, shape: type[T], *, env: Mapping[str, str]) -> T:
    """`text` as a `shape`; error messages call it `source`. Raises `DocumentError`.

    `${env:NAME}` in a value is replaced by that variable of `env`, `$$` by a dollar sign.
    """
    return parse(text, source, env=env).to(shape)


def schema(shape: Any) -> dict[str, Any]:
    """The JSON Schema of a settings type, for completion in editors."""
    from hostler.profiles.json_schema import json_schema

    return json_schema(shape)


def dotted(path: KeyPath) -> str:
    """For example `backends.lan.models[2]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def parse(text: str, source: str, *, env: Mapping[str, str], errors: list[DocumentError] | None = None) -> Document:
    """`text` as plain values with their lines. Raises `DocumentError` for anything but safe, plain YAML.

    With `errors`, values with an unknown variable are left out and added to it instead.
    """
    from hostler.profiles.yaml_values import read_values  # 0.1 s: ruamel

    return Document(source, read_values(text, source, env, errors))


def _decode(shape: Any, value: Any) -> Any:
    if shape is Size:
        return Size.parse(value)
    raise NotImplementedError(f"no way to read a {shape!r}")


def _locate(error: msgspec.ValidationError, value: Any, shape: Any) -> tuple[KeyPath, str, bool]:
    """The path of the invalid value, the message, and whether it is about a key.

    msgspec writes `[...]` for the key of a mapping: it is found by trial.
    """
    match = _AT.match(str(error))
    if match is None:
        return (), str(error), False
    path: KeyPath = ()
    for name, index, _unnamed in _STEP.findall(match["path"] or ""):
        if name:
            path = (*path, name)
        elif index:
            path = (*path, int(index))
        else:
            path = (*path, _failing_key(str(error), value, shape, path))
            value = _with_value(value, path[:-1], {path[-1]: _value_at(value, path)})
    return path, match["message"], bool(match["key"])


def _failing_key(message: str, value: Any, shape: Any, path: KeyPath) -> str | int:
    candidates = _value_at(value, path)
    if not isinstance(candidates, dict):
        return 0
    for key, item in candidates.items():
        try:
            msgspec.convert(_with_value(value, path, {key: item}), shape, dec_hook=_decode)
        except msgspec.ValidationError as error:
            if str(error) == message:
                return str(key)
    return str(next(iter(candidates), ""))


def _value_at(value: Any, path: KeyPath) -> Any:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _with_value(value: Any, path: KeyPath, new: Any) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        return value | {step: _with_value(value[step], rest, new)}
    if isinstance(value, list) and isinstance(step, int):
        return [*value[:step], _with_value(value[step], rest, new), *value[step + 1 :]]
    return value


def _in_mapping(path: KeyPath) -> KeyPath:
    """`path`, or that of the outermost list it is in: what can be left out without moving anything else."""
    return next((path[:index] for index, step in enumerate(path) if isinstance(step, int)), path)


def _without(value: Any, path: KeyPath) -> Any:
    """A copy of `value` without what is at `path`, if it is in a mapping."""
    *above, last = path or ("",)
    parent = _value_at(value, tuple(above))
    if not isinstance(parent, dict) or last not in parent:
        return value
    return _with_value(value, tuple(above), {key: item for key, item in parent.items() if key != last})


def _known_keys(shape: Any, path: KeyPath) -> list[str]:
    info = _container_type(_type_at(shape, path))
    return [field.encode_name for field in info.fields] if isinstance(info, msgspec.inspect.StructType) else []


def _known_values(shape: Any, path: KeyPath) -> list[str]:
    """The literals allowed at `path`, and other kinds of value that are."""
    info = _type_at(shape, path)
    known: list[str] = []
    for member in info.types if isinstance(info, msgspec.inspect.UnionType) else (info,):
        if isinstance(member, msgspec.inspect.LiteralType):
            known += [str(value) for value in member.values]
        elif isinstance(member, msgspec.inspect.IntType | msgspec.inspect.FloatType):
            known.append("a number")
    return known


def _type_at(shape: Any, path: KeyPath) -> Any:
    """msgspec's description of the type at `path`."""
    info: Any = msgspec.inspect.type_info(shape)
    for step in path:
        info = _container_type(info)
        if isinstance(info, msgspec.inspect.StructType):
            info = next((field.type for field in info.fields if field.encode_name == step), None)
        elif isinstance(info, msgspec.inspect.DictType):
            info = info.value_type
        else:
            info = getattr(info, "item_type", None)
    return info


def _container_type(info: Any) -> Any:
    info = _without_metadata(info)
    if isinstance(info, msgspec.inspect.UnionType):
        kinds = (msgspec.inspect.StructType, msgspec.inspect.DictType, msgspec.inspect.CollectionType)
        return next((member for member in map(_without_metadata, info.types) if isinstance(member, kinds)), None)
    return info


def _without_metadata(info: Any) -> Any:
    """The type itself, where a description or a bound is attached to it."""
    return info.type if isinstance(info, msgspec.inspect.Metadata) else info


def _unknown_key(name: str, known: list[str]) -> str:
    if similar := difflib.get_close_matches(name, known, n=1):
        return f"unknown key, did you mean {similar[0]}?"
    return f"unknown key, valid keys: {', '.join(known)}" if known else "unknown key"


def _type_names(types: str) -> str:
    names = types.split(" | ")
    names = [_TYPE_NAMES.get(name, name) for name in names if name != "int" or "float" not in names]
    return " or ".join(sorted(names, key="null".__eq__))


def _excerpt(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_secret(path: KeyPath) -> bool:
    return any(isinstance(step, str) and _SECRET_KEY.search(step) for step in path[-2:])


def _holds_secret(path: KeyPath) -> bool:
    last = path[-1] if path else ""
    if "env" in path or not isinstance(last, str):
        return False
    in_headers = len(path) > 1 and path[-2] == "headers"
    return _SECRET_SETTING.fullmatch(last) is not None or (in_headers and _is_secret(path))
