"""The forms in which a key may be shown."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.key_encodings import encodings

SHOWN: dict[str, Callable[[bytes], bytes]] = {
    "base64": base64.b64encode,
    "base64 for URLs": base64.urlsafe_b64encode,
    "hexadecimal": lambda text: codecs.encode(text, "hex"),
    "URL": lambda text: quote(text, safe="").encode(),
}
WORDS = st.text(st.characters(codec="ascii", exclude_categories=("C",)), max_size=9).map(str.encode)


@pytest.mark.parametrize("form", SHOWN)
@given(key=WORDS.map(lambda word: b"/+=k<" + word + b"&%12345"), before=WORDS, after=WORDS)
def test_a_form_is_found_whatever_stands_around_the_key(form: str, key: bytes, before: bytes, after: bytes) -> None:
    shown = SHOWN[form](before + key + after)
    assert any(each in shown for each in encodings(key))


def test_the_key_itself_and_what_is_too_short_to_tell_anything_are_none_of_them() -> None:
    found = encodings(b"sk-0123456789")
    assert b"sk-0123456789" not in found
    assert min(map(len, found)) > 13
