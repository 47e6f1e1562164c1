"""The operator's changes to forms: uploads of sound, images and videos."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.datastructures import UploadFile
from starlette.requests import Request

from hostler.adapters.base import WireRequest
from hostler.adapters.request_rewriting import rewrite
from hostler.profiles.request_rules import RequestChanges

pytestmark = pytest.mark.anyio

TYPE = 'multipart/form-data; boundary="=x="'
SOUND = bytes(range(256)) + b"\r\n--=x\r\n\r\nname=language"
Fields = list[tuple[str, str]]


def form(fields: Fields) -> bytes:
    parts = [
        f'--=x=\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields
    ]
    file = b'--=x=\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + SOUND + b"\r\n"
    return b"".join([*parts[:1], file, *parts[1:], b"--=x=--\r\n"])


async def read(body: bytes) -> tuple[Fields, bytes]:
    """The text fields and the file, as a server reads them."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    scope = {"type": "http", "headers": [(b"content-type", TYPE.encode())]}
    fields: Fields = []
    sound = b""
    async with Request(scope, receive).form() as found:
        for name, value in found.multi_items():
            if isinstance(value, UploadFile):
                sound = await value.read()
            else:
                fields.append((name, value))
    return fields, sound


def rewritten(fields: Fields, path: str = "/v1/audio/transcriptions", **changes: Any) -> WireRequest:
    request = WireRequest(path=path, body=form(fields), content_type=TYPE)
    return rewrite(request, [RequestChanges(**changes)])


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({"drop": ("prompt",)}, [("model", "m"), ("prompt", "a\r\nb")], [("model", "m")]),
        ({"drop": ("g[]",)}, [("model", "m"), ("g[]", "1"), ("x", "y"), ("g[]", "2")], [("model", "m"), ("x", "y")]),
        ({"default": {"language": "de"}}, [("model", "m")], [("language", "de"), ("model", "m")]),
        ({"default": {"language": "de"}}, [("model", "m"), ("language", "en")], [("model", "m"), ("language", "en")]),
        ({"force": {"response_format": "json"}}, [("model", "m"), ("response_format", "srt")], [("model", "m"), ("response_format", "json")]),
        ({"force": {"size": {"w": 1}, "ok": True}}, [("model", "m")], [("size", '{"w":1}'), ("ok", "true"), ("model", "m")]),
        ({"force": {"g[]": "word"}}, [("model", "m"), ("g[]", "1"), ("g[]", "2")], [("model", "m"), ("g[]", "word")]),
        ({"rename": {"lang": "language"}}, [("model", "m"), ("lang", "fü")], [("language", "fü"), ("model", "m")]),
        ({"rename": {"lang": "language"}}, [("model", "m"), ("lang", "a"), ("language", "b")], [("model", "m"), ("language", "b")]),
        ({"limits": {"seconds": 8}}, [("model", "m"), ("seconds", "20")], [("model", "m"), ("seconds", "8")]),
        ({"rename": {"a[]": "b[]"}}, [("a[]", "1"), ("model", "m"), ("a[]", "2")], [("b[]", "1"), ("b[]", "2"), ("model", "m")]),
        ({"rename": {"a": "b"}, "force": {"b": "2"}}, [("a", "1"), ("model", "m")], [("b", "2"), ("model", "m")]),
        ({"rename": {"a": "b"}, "drop": ("b",)}, [("a", "1"), ("model", "m")], [("model", "m")]),
        ({"limits": {"seconds": 8}}, [("model", "m"), ("seconds", "20"), ("seconds", "4")], [("model", "m"), ("seconds", "8")]),
        ({"limits": {"seconds": 8}, "force": {"seconds": 2}}, [("model", "m"), ("seconds", "20")], [("model", "m"), ("seconds", "2")]),
        ({"drop": ("filename_hint",)}, [("model", "m"), ("filename_hint", "x")], [("model", "m")]),
        ({"limits": {"seconds": 8}}, [("model", "m"), ("seconds", "auto")], [("model", "m"), ("seconds", "auto")]),
        ({"force": {"language": "de"}, "drop": ("prompt",)}, [("prompt", "x" * 9000)], [("language", "de")]),
    ],
)  # fmt: skip
async def test_text_fields_are_changed_and_files_are_not(
    changes: dict[str, Any], before: Fields, after: Fields
) -> None:
    assert await read(rewritten(before, **changes).body) == (after, SOUND)


async def test_what_is_about_generating_text_or_is_a_system_prompt_is_not_added() -> None:
    changes: dict[str, Any] = {
        "force": {"max_tokens": 9, "chat_template_kwargs.enable_thinking": False},
        "default": {"temperature": 1},
    }
    request = WireRequest(path="/v1/audio/transcriptions", body=form([("model", "m")]), content_type=TYPE)
    assert rewrite(request, [RequestChanges(**changes, limits={"max_tokens": 5}, system="Be nice.")]) is request


@pytest.mark.parametrize("body", [b"", b"--=x=", b"no form", b"--=x=\r\nContent-Disposition: form-data"])
async def test_a_malformed_form_is_left_to_the_backend(body: bytes) -> None:
    request = WireRequest(path="/v1/videos", body=body, content_type=TYPE)
    assert rewrite(request, [RequestChanges(force={"size": "s"}, drop=("model",))]) is request


async def test_without_a_boundary_a_form_is_left_to_the_backend() -> None:
    request = WireRequest(path="/v1/videos", body=form([]), content_type="multipart/form-data")
    assert rewrite(request, [RequestChanges(force={"size": "s"})]) is request


async def test_rules_one_after_the_other_see_what_those_before_have_changed() -> None:
    request = WireRequest(path="/v1/videos", body=form([("model", "m"), ("a", "1")]), content_type=TYPE)
    rules = [RequestChanges(rename={"a": "b"}), RequestChanges(rename={"b": "c"}, default={"c": "2", "d": "3"})]
    assert await read(rewrite(request, rules).body) == ([("c", "1"), ("d", "3"), ("model", "m")], SOUND)


async def test_the_time_for_a_large_form_does_not_grow_with_its_fields_and_rules() -> None:
    large = b'--=x=\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(8_000_000) + b"\r\n"

    def seconds(fields: Fields, **changes: Any) -> float:
        body = form(fields).removesuffix(b"--=x=--\r\n") + large + b"--=x=--\r\n"
        request = WireRequest(path="/v1/videos", body=body, content_type=TYPE)
        began_at = time.process_time()
        rewrite(request, [RequestChanges(**changes)])
        return time.process_time() - began_at

    few = seconds([("a", "1")], drop=("a",))
    names = [f"n{index}" for index in range(100)]
    many = seconds([("a", "1")] * 200, drop=("a", *names), force=dict.fromkeys(names, "1"))
    assert many < 10 * few + 0.1
