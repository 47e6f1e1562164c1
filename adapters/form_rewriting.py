"""Applies the operator's changes to the text fields of a form; files and every other byte stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from hostler.adapters import multipart
from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BadRequest
from hostler.profiles.request_rules import RequestChanges

MEDIA_TYPE = "multipart/form-data"


def rewrite_form(request: WireRequest, changes: Iterable[RequestChanges], takes: Callable[[str], bool]) -> WireRequest:
    """The form with these changes, one after the other; the same object if nothing changes, or if it is malformed. Fields
    that it has not are added if it `takes` them."""
    try:
        form = _Form(request.body, request.content_type)
    except BadRequest:
        return request  # the backend judges it
    for each in changes:
        _apply(form, each, takes)
    return request if form.is_unchanged else msgspec.structs.replace(request, body=form.body())


class _Form:
    """A form and what is changed in it. It is read once and written once, since it may be large."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self._original = body
        self._content_type = content_type
        self._fields = list(multipart.text_fields(body, content_type))
        self._removed: list[multipart.TextField] = []
        self._changed: dict[multipart.TextField, bytes] = {}
        self._added: list[tuple[str, bytes]] = []

    @property
    def is_unchanged(self) -> bool:
        return not (self._removed or self._changed or self._added)

    def body(self) -> bytes:
        """The form with all changes. Added fields come first."""
        edits = [(each.start, each.end, value) for each, value in self._changed.items()]
        edits += [(each.part, each.next_part, b"") for each in self._removed]
        if self._added:
            start = self._original.index(b"--" + multipart.boundary(self._content_type))
            new = b"".join(multipart.text_part(self._content_type, *each) for each in self._added)
            edits.append((start, start, new))
        pieces: list[bytes] = []
        at = 0
        for start, end, value in sorted(edits):
            pieces += (self._original[at:start], value)
            at = end
        return b"".join((*pieces, self._original[at:]))

    def values(self, name: str) -> list[bytes]:
        """The values of the fields with this name."""
        given = [self._value(each) for each in self._fields if each.name == name]
        return given + [value for added, value in self._added if added == name]

    def remove(self, name: str) -> None:
        self._remove([each for each in self._fields if each.name == name])
        self._added = [each for each in self._added if each[0] != name]

    def set(self, name: str, value: bytes) -> None:
        """Give the field this value alone; its place stays."""
        given = [each for each in self._fields if each.name == name]
        if not given:
            self.remove(name)
            self.add(name, value)
            return
        self._remove(given[1:])
        if self._value(given[0]) != value:
            self._changed[given[0]] = value

    def add(self, name: str, value: bytes) -> None:
        self._added.append((name, value))

    def _value(self, field: multipart.TextField) -> bytes:
        value = self._changed.get(field)
        return self._original[field.start : field.end] if value is None else value

    def _remove(self, fields: list[multipart.TextField]) -> None:
        gone = set(fields)
        self._removed += fields
        self._fields = [each for each in self._fields if each not in gone]
        self._changed = {each: value for each, value in self._changed.items() if each not in gone}


def _apply(form: _Form, changes: RequestChanges, takes: Callable[[str], bool]) -> None:
    for before, after in changes.rename.items():
        if values := form.values(before):
            form.remove(before)
            if not form.values(after):
                for value in values:
                    form.add(after, value)
    for name in changes.drop:
        form.remove(name)
    for name, given in changes.default.items():
        if takes(name) and not form.values(name):
            form.set(name, _text(given))
    for name, limit in changes.limits.items():
        # Of several fields with this name it is the backend that chooses.
        if any(number > limit for number in _numbers(form.values(name))):
            form.set(name, _text(limit))
    for name, given in changes.force.items():
        if takes(name):
            form.set(name, _text(given))


def _text(value: Any) -> bytes:
    """A value as forms have it: text as it is, everything else as JSON."""
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _numbers(values: list[bytes]) -> Iterator[float]:
    for value in values:
        with contextlib.suppress(ValueError):
            yield float(value)
