"""The model in a multipart form is read and replaced; files are left alone."""

from __future__ import annotations

import time

import httpx
import pytest

from hostler.adapters import multipart
from hostler.adapters.errors import BadRequest

FILE = bytes(range(256)) * 40 + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nevil'


def upload(**fields: str) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x/", data=fields, files={"file": ("model.wav", FILE, "audio/wav")})
    return request.read(), request.headers["content-type"]


def test_the_model_is_found_among_files() -> None:
    body, kind = upload(model="whisper", language="en")
    assert multipart.field(body, kind, "model") == "whisper"
    assert multipart.field(body, kind, "file") is None


def test_replacing_the_model_keeps_every_other_byte() -> None:
    body, kind = upload(language="en", model="whisper")
    patched = multipart.patch(body, kind, "model", "large")
    assert patched == body.replace(b"\r\n\r\nwhisper\r\n", b"\r\n\r\nlarge\r\n")
    assert len(patched) == len(body) - 2


def test_an_absent_model_is_added() -> None:
    body, kind = upload(language="en")
    patched = multipart.patch(body, kind, "model", "large")
    assert multipart.field(patched, kind, "model") == "large"
    assert multipart.field(patched, kind, "language") == "en"
    assert FILE in patched


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"x", "multipart/form-data", "no boundary"),
        (b"x", "multipart/form-data; boundary=q", "does not contain the boundary"),
        (b"--q\r\nContent-Disposition: form-data; name=model\r\n\r\nx", "multipart/form-data; boundary=q", "cut off"),
        (
            b'--q\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n' * 2 + b"--q--",
            "multipart/form-data; boundary=q",
            "`model` more than once",
        ),
    ],
)
def test_a_malformed_form_is_rejected(body: bytes, kind: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        multipart.field(body, kind, "model")


def test_too_many_parts_are_rejected() -> None:
    body = b"--q\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n" * 1000 + b"--q--"
    with pytest.raises(BadRequest, match="more than 256 parts"):
        multipart.field(body, "multipart/form-data; boundary=q", "model")


def test_a_name_cannot_inject_a_part() -> None:
    body, kind = upload(model="whisper")
    with pytest.raises(BadRequest):
        multipart.patch(body, kind, "model", 'a\r\n--q\r\nContent-Disposition: form-data; name="x"\r\n\r\n')


@pytest.mark.parametrize(
    "head",
    [
        b"content-disposition:" * 800,
        b"content-disposition:" + b';name="' * 2000,
        b"content-disposition:" + b"; name=" * 2000,
        b"content-disposition: form-data" + b" " * 15000,
        b"content-disposition:" + b";name=b" * 2000,
    ],
)
def test_reading_a_form_takes_no_longer_for_hostile_heads(head: bytes) -> None:
    body = (b"--q\r\n" + head + b"\r\n\r\nx\r\n") * 100 + b"--q--"
    began_at = time.process_time()
    assert multipart.field(body, "multipart/form-data; boundary=q", "model") is None
    assert time.process_time() - began_at < 1.0


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        (b'form-data; name="a"', ["a"]),
        (b"form-data; NAME=a", ["a"]),
        (b'form-data; name=""', [""]),
        (b'form-data; filename="x; name=b"; name="a"', []),
        (b'form-data; name="a"; filename=""', []),
        (b"form-data; name=a; filename*=UTF-8''x", []),
        (b'form-data; name="filename"', ["filename"]),
        (b"form-data", []),
    ],
)
def test_fields_are_told_from_files(head: bytes, fields: list[str]) -> None:
    body = b"--q\r\nContent-Type: text/plain\r\nContent-Disposition: " + head + b"\r\n\r\nx\r\n--q--"
    found = multipart.text_fields(body, "multipart/form-data; boundary=q")
    assert [each.name for each in found] == fields
