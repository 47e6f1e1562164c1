"""YAML of other programs as plain values with their lines: dollar signs mean what the program makes of them."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from hostler.gateway.importing.report import ImportFailed
from hostler.profiles.yaml_config import DocumentError, parse

_LARGEST: Final = 2**53


class YamlSource:
    """A parsed file. `value` is a mapping."""

    def __init__(self, text: str, name: str) -> None:
        """Raises `ImportFailed` for anything but safe, plain YAML with a mapping at its top."""
        if "\0" in text:
            raise ImportFailed(f"{name}: is not a text file")
        try:
            # Hostler's own variables are not known to other programs: every dollar sign stands for itself.
            self._document = parse(text.replace("$", "$$"), name, env={})
        except DocumentError as error:
            raise ImportFailed(str(error)) from None
        if not isinstance(self._document.value, dict):
            raise ImportFailed(f"{name}:1: expected a mapping")
        self.value: dict[str, Any] = _with_plain_keys(self._document.value)

    def line(self, *path: str | int) -> int | None:
        """The line of the value at `path`, or of the closest parent that exists."""
        return self._document.line(*(step.replace("$", "$$") if isinstance(step, str) else step for step in path))

    def failure(self, path: tuple[str | int, ...], message: str) -> ImportFailed:
        """An error about the value at `path`."""
        return ImportFailed(str(self._document.error(path, message)))

    def mapping(self, *path: str | int) -> dict[str, Any]:
        """The mapping at `path`, empty if there is none. Raises `ImportFailed` for another kind of value."""
        found = self._at(path)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self.failure(path, "expected a mapping")
        return found

    def items(self, *path: str | int) -> list[Any]:
        """The list at `path`, empty if there is none. Raises `ImportFailed` for another kind of value."""
        found = self._at(path)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.failure(path, "expected a list")
        return found

    def _at(self, path: tuple[str | int, ...]) -> Any:
        value: Any = self.value
        for step in path:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value


def is_number(value: Any, least: float = 0.0) -> TypeGuard[int | float]:
    """Whether this is a finite number of at least `least`, and none that only fits into memory."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= _LARGEST


def _with_plain_keys(value: Any) -> Any:
    match value:
        case dict():
            return {key.replace("$$", "$"): _with_plain_keys(each) for key, each in value.items()}
        case list():
            return [_with_plain_keys(each) for each in value]
    return value
