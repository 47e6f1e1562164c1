"""The gateway's own key in what a backend sends."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.canonical import ResponseHead
from hostler.adapters.redaction import Redactor, redactor

KEY = "sk-or-v1-0123456789abcdef/+=zz"
ESCAPED = KEY.replace("/", "\\/")


def subject() -> Redactor:
    found = redactor(KEY)
    assert found is not None
    return found


@given(
    st.lists(st.sampled_from([KEY, ESCAPED, KEY[:10], KEY[5:], "sk-", "text\n", "\n\n", "z"]), max_size=8),
    st.lists(st.integers(1, 40)),
)
def test_no_cut_lets_it_through_or_changes_anything_else(words: list[str], sizes: list[int]) -> None:
    data = "".join(words).encode()
    redacting, passed, at = subject(), b"", 0
    for size in [*sizes, len(data)]:
        passed += redacting.feed(data[at : at + size])
        at += size
    passed += redacting.rest()
    assert len(passed) == len(data)
    assert KEY.encode() not in passed
    assert ESCAPED.encode() not in passed
    assert all(here in (there, ord("*")) for here, there in zip(passed, data, strict=True))
    if KEY.encode() not in data and ESCAPED.encode() not in data:
        assert passed == data


def test_events_are_not_held_back() -> None:
    redacting = subject()
    for data in (b'data: {"a": "sk-"}\n\n', b'{"a": 1}\n', b"[DONE]\n\n"):
        assert redacting.feed(data) == data
    assert redacting.feed(b"and sk-or") == b"and "
    assert redacting.rest() == b"sk-or"


@pytest.mark.parametrize("spelling", [KEY, ESCAPED, "".join(f"\\u{ord(c):04x}" if c in "/+=" else c for c in KEY)])
def test_every_spelling_in_json_is_found(spelling: str) -> None:
    assert KEY in json.loads(f'"{spelling}"')
    assert KEY not in json.loads(b'"' + subject().feed(spelling.encode()) + b'"')


def test_heads_and_headers_are_searched() -> None:
    assert KEY not in subject().head(ResponseHead(media_type=f"text/plain; k={KEY}")).media_type
    assert subject().headers({"x-a": f"Bearer {KEY}", "x-b": "plain"}) == {"x-a": "Bearer " + "*" * 30, "x-b": "plain"}
    head = ResponseHead()
    assert subject().head(head) is head


@pytest.mark.parametrize("key", [None, "", "none", "EMPTY", "lm-studio", "not-needed", "sk-no-key-required"])
def test_words_that_are_no_secrets_may_appear_in_answers(key: str | None) -> None:
    assert redactor(key) is None


def escaped(key: str, choices: list[int]) -> str:
    """The key as a text in JSON, each character in one of its spellings."""
    spelled = []
    for character, choice in zip(key, choices, strict=True):
        forms = [character, f"\\u{ord(character):04x}", f"\\u{ord(character):04X}"]
        spelled.append(("\\/" if character == "/" else forms[0]) if choice == 3 else forms[choice])
    return "".join(spelled)


@given(st.lists(st.integers(0, 3), min_size=len(KEY), max_size=len(KEY)), st.lists(st.integers(1, 60)))
def test_no_mixture_of_escapes_lets_it_through_however_it_is_cut(choices: list[int], sizes: list[int]) -> None:
    text = escaped(KEY, choices)
    assert json.loads(f'"{text}"') == KEY
    data, redacting, passed, at = f'{{"error": "bad {text}, \\u00e9"}}'.encode(), subject(), b"", 0
    for size in [*sizes, len(data)]:
        passed += redacting.feed(data[at : at + size])
        at += size
    passed += redacting.rest()
    assert len(passed) == len(data)
    assert json.loads(passed)["error"] == f"bad {'*' * len(text)}, é"


def test_a_key_in_an_error_within_an_error_is_found() -> None:
    inner = json.dumps({"error": "bad " + KEY}).replace("+", "\\u002b").replace("/", "\\/")
    passed = subject().feed(json.dumps({"error": {"raw": inner}}).encode() + b"\n")
    assert KEY not in json.loads(json.loads(passed)["error"]["raw"])["error"]


def test_many_backslashes_do_not_take_long() -> None:
    flood = b'"' + b"\\" * 1_000_000 + b'\\u002b"\n'
    assert subject().feed(flood) == flood


FORMS = {
    **{
        f"base64 after {before}": base64.b64encode(f"{before}{KEY}".encode()).decode()
        for before in ("", "a:", "Bearer ")
    },
    "base64 before others": base64.b64encode(f"{KEY}:secret".encode()).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(KEY.encode()).decode(),
    "base64 in JSON": base64.b64encode(f"?>{KEY}?>".encode()).decode().replace("/", "\\/"),
    "hexadecimal": KEY.encode().hex(),
    "capital hexadecimal": KEY.encode().hex().upper(),
    "URL": quote(KEY),
    "URL with all escapes": quote(KEY, safe=""),
    "URL with small letters": quote(KEY, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d"),
    "form": quote_plus(KEY),
    "UTF-16": KEY.encode("utf-16-be").decode("latin-1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_the_key_are_found_however_they_are_cut(form: str) -> None:
    told = FORMS[form].encode("latin-1")
    data = b"you sent " + told + b" to us\n"
    for cut in range(len(data)):
        redacting = subject()
        passed = redacting.feed(data[:cut]) + redacting.feed(data[cut:]) + redacting.rest()
        # In base64 the characters at either end belong to what stands beside the key.
        assert told[6:-6] not in passed
        assert passed.count(b"*") >= len(told) - 16
        assert len(passed) == len(data)
        assert passed.startswith(b"you sent ") and passed.endswith(b" to us\n")


def test_a_key_with_marks_of_html_is_found_on_pages() -> None:
    key = "a<key>&'with'\"marks\""
    redacting = redactor(key)
    assert redacting is not None
    for page in (html.escape(key), html.escape(key).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")):
        assert redacting.feed(f"<p>{page}</p>\n".encode()) == b"<p>" + b"*" * len(page) + b"</p>\n"


def test_only_the_plain_form_is_looked_for_where_that_is_enough() -> None:
    redacting = redactor(KEY, encoded=False)
    assert redacting is not None
    assert redacting.feed(f"{KEY} {KEY.encode().hex()}\n".encode()) == b"*" * 30 + f" {KEY.encode().hex()}\n".encode()
