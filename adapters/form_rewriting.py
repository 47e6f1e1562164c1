"""Applies the operator's changes to the text fields of a form; files and every other byte stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    form = _Form(request.body, request.content_type)
    try:
        for each in changes:
            _apply(form, each, takes)
    except BadRequest:
        return request  # the backend judges it
    return request if form.body is request.body else msgspec.structs.replace(request, body=form.body)


class _Form:
    """A form's body, which is replaced with every change."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self.body = body
        self._content_type = content_type

    def values(self, name: str) -> list[bytes]:
        """The values of the fields with this name."""
        return [self.body[each.start : each.end] for each in self._fields(name)]

    def remove(self, name: str) -> None:
        for each in reversed(self._fields(name)):
            self.body = self.body[: each.part] + self.body[each.next_part :]

    def set(self, name: str, value: bytes) -> None:
        """Give the field this value alone; its place stays."""
        fields = self._fields(name)
        if not fields:
            self.body = multipart.insert(self.body, self._content_type, name, value)
            return
        for each in reversed(fields[1:]):
            self.body = self.body[: each.part] + self.body[each.next_part :]
        start, end = fields[0].start, fields[0].end
        if self.body[start:end] != value:
            self.body = self.body[:start] + value + self.body[end:]

    def _fields(self, name: str) -> list[multipart.TextField]:
        return [each for each in multipart.text_fields(self.body, self._content_type) if each.name == name]


def _apply(form: _Form, changes: RequestChanges, takes: Callable[[str], bool]) -> None:
    for before, after in changes.rename.items():
        if values := form.values(before):
            form.remove(before)
            if not form.values(after):
                form.set(after, values[-1])
    for name in changes.drop:
        form.remove(name)
    for name, given in changes.default.items():
        if takes(name) and not form.values(name):
            form.set(name, _text(given))
    for name, limit in changes.limits.items():
        number = _number(form.values(name))
        if number is not None and number > limit:
            form.set(name, _text(limit))
    for name, given in changes.force.items():
        if takes(name):
            form.set(name, _text(given))


def _text(value: Any) -> bytes:
    """A value as forms have it: text as it is, everything else as JSON."""
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _number(values: list[bytes]) -> float | None:
    try:
        return float(values[-1])
    except (IndexError, ValueError):
        return None
