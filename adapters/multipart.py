"""A `multipart/form-data` body as bytes: short text fields are read, one can be replaced, files stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from hostler.adapters.errors import BadRequest

# Fields are searched between the files, however large those are; no upload has more parts than this.
MAX_PARTS = 256
MAX_FIELD = 4096
#: Of those that are looked for; a part has three at most.
MAX_PARAMETERS = 8

_FILE_NAMES = frozenset({"filename", "filename*"})

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,200})"|([^\s;,"]{1,200}))', re.IGNORECASE)
# Both take time in proportion to a head, whatever it contains: neither looks at a byte again after a match has failed.
_DISPOSITION = re.compile(rb"content-disposition:([^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb'[;\s](name|filename\*?)=(?:"([^"]*)"|([^\s;]+))', re.IGNORECASE)


def boundary(content_type: str) -> bytes:
    """The boundary in the media type. Raises `BadRequest` if there is none."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise BadRequest("The multipart body has no boundary in its Content-Type.")
    return (match[1] or match[2]).encode("latin-1", "replace")


class TextField(NamedTuple):
    """A text field: where its part begins and the next one does, and where its value begins and ends."""

    name: str
    part: int
    start: int
    end: int

    @property
    def next_part(self) -> int:
        return self.end + 2


def text_fields(body: bytes, content_type: str) -> Iterator[TextField]:
    """The fields that are no files, in order. Raises `BadRequest` if the form is malformed."""
    mark = b"--" + boundary(content_type)
    at = body.find(mark)
    if at < 0:
        raise BadRequest("The multipart body does not contain the boundary from its Content-Type.")
    for _ in range(MAX_PARTS):
        head_start = at + len(mark)
        if body.startswith(b"--", head_start):
            return
        head_end = body.find(b"\r\n\r\n", head_start, head_start + 16384)
        next_mark = body.find(b"\r\n" + mark, max(head_end, head_start))
        if head_end < 0 or next_mark < 0:
            raise BadRequest("The multipart body is cut off or malformed.")
        head = body[head_start:head_end]
        given = _parameters(head)
        if "name" in given and not given.keys() & _FILE_NAMES:
            yield TextField(given["name"], at, head_end + 4, next_mark)
        at = next_mark + 2
    raise BadRequest(f"The multipart body has more than {MAX_PARTS} parts.")


def spans(body: bytes, content_type: str) -> dict[str, tuple[int, int]]:
    """The start and end of each short text field's value in the body. Raises `BadRequest` if the form is malformed."""
    found: dict[str, tuple[int, int]] = {}
    for each in text_fields(body, content_type):
        if each.end - each.start + 4 > MAX_FIELD:
            continue
        if each.name in found and each.name == "model":
            raise BadRequest("The form has `model` more than once.", param="model")
        found[each.name] = (each.start, each.end)
    return found


def field(body: bytes, content_type: str, name: str) -> str | None:
    """The value of a text field; `None` if it is absent."""
    span = spans(body, content_type).get(name)
    if span is None:
        return None
    try:
        return body[span[0] : span[1]].decode()
    except UnicodeDecodeError:
        raise BadRequest(f"`{name}` must be UTF-8 text.", param=name) from None


def patch(body: bytes, content_type: str, name: str, value: str) -> bytes:
    """The body with this text field set and every other byte as it was; an absent field is inserted first."""
    if "\r" in value or "\n" in value:
        raise BadRequest(f"`{name}` must be one line.", param=name)
    span = spans(body, content_type).get(name)
    if span is not None:
        return b"".join((body[: span[0]], value.encode(), body[span[1] :]))
    mark = b"--" + boundary(content_type)
    at = body.index(mark)
    return b"".join((body[:at], text_part(content_type, name, value.encode()), body[at:]))


def text_part(content_type: str, name: str, value: bytes) -> bytes:
    """A text field, to be put before another part."""
    head = f'\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    return b"".join((b"--", boundary(content_type), head, value, b"\r\n"))


def file(body: bytes, content_type: str, name: str) -> tuple[str, bytes] | None:
    """The filename and content of a part that is a file; `None` if it is absent."""
    mark = b"--" + boundary(content_type)
    at = body.find(mark)
    for _ in range(MAX_PARTS):
        head_end = body.find(b"\r\n\r\n", at, at + 16384)
        next_mark = body.find(b"\r\n" + mark, max(head_end, at))
        if at < 0 or head_end < 0 or next_mark < 0:
            return None
        given = _parameters(body[at:head_end])
        if given.get("name") == name and "filename" in given:
            return given["filename"], body[head_end + 4 : next_mark]
        at = next_mark + 2
    return None


def _parameters(head: bytes) -> dict[str, str]:
    """A part's name and file name, if it has them. Of several the first one counts."""
    found: dict[str, str] = {}
    line = _DISPOSITION.search(head)
    for parameter in islice(_PARAMETER.finditer(line[1]), MAX_PARAMETERS) if line is not None else ():
        value: bytes = parameter[3] if parameter[2] is None else parameter[2]
        found.setdefault(parameter[1].decode().lower(), value.decode("utf-8", "replace"))
    return found
