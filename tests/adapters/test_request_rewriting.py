"""The operator's changes of requests: what they do in each protocol, and what they leave as it is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hostler.adapters.base import WireRequest
from hostler.adapters.request_rewriting import preview, rewrite
from hostler.profiles.request_rules import RequestChanges

CHAT = "/v1/chat/completions"


def changed(body: dict[str, Any], path: str = CHAT, **changes: Any) -> dict[str, Any]:
    request = WireRequest(path=path, body=msgspec.json.encode(body))
    return msgspec.json.decode(rewrite(request, [RequestChanges(**changes)]).body, type=dict[str, Any])


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({"drop": ("logit_bias",)}, {"a": 1, "logit_bias": {}}, {"a": 1}),
        ({"drop": ("absent",)}, {"a": 1}, {"a": 1}),
        ({"default": {"temperature": 0.2}}, {}, {"temperature": 0.2}),
        ({"default": {"temperature": 0.2}}, {"temperature": 1}, {"temperature": 1}),
        ({"default": {"temperature": 0.2}}, {"temperature": None}, {"temperature": 0.2}),
        ({"force": {"temperature": 0.2}}, {"temperature": 1}, {"temperature": 0.2}),
        (
            {"force": {"chat_template_kwargs.enable_thinking": False}},
            {"chat_template_kwargs": {"other": 1}},
            {"chat_template_kwargs": {"other": 1, "enable_thinking": False}},
        ),
        ({"force": {"a.b.c": 1}}, {"a": 7}, {"a": {"b": {"c": 1}}}),
        ({"default": {"a.b": 1}}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"drop": ("a.b",)}, {"a": {"b": 2, "c": 3}}, {"a": {"c": 3}}),
        ({"drop": ("a.b",)}, {"a": 7}, {"a": 7}),
        ({"drop": ("a.b",)}, {"a.b": 2}, {}),
        ({"rename": {"max_tokens": "max_completion_tokens"}}, {"max_tokens": 9}, {"max_completion_tokens": 9}),
        ({"rename": {"a": "b"}}, {"a": 1, "b": 2}, {"b": 2}),
        ({"rename": {"a": "b.c"}}, {"a": [1]}, {"b": {"c": [1]}}),
        ({"limits": {"temperature": 1}}, {"temperature": 1.5}, {"temperature": 1}),
        ({"limits": {"temperature": 1}}, {"temperature": 0.5}, {"temperature": 0.5}),
        ({"limits": {"temperature": 1}}, {}, {}),
        ({"limits": {"temperature": 1}}, {"temperature": "hot"}, {"temperature": "hot"}),
        ({"limits": {"max_tokens": 100}}, {"max_completion_tokens": 500}, {"max_completion_tokens": 100}),
        ({"limits": {"max_tokens": 100}}, {"max_tokens": 50}, {"max_tokens": 50}),
        ({"limits": {"max_tokens": 100}}, {"max_tokens": -1}, {"max_tokens": 100}),
        ({"limits": {"max_tokens": 100}}, {}, {"max_tokens": 100}),
        ({"limits": {"max_completion_tokens": 100}}, {}, {"max_completion_tokens": 100}),
        ({"force": {"n": 1}, "drop": ("n",), "default": {"n": 3}}, {"n": 2}, {"n": 1}),
        ({"default": {"max_tokens": 500}, "limits": {"max_tokens": 100}}, {}, {"max_tokens": 100}),
    ],
)
def test_members_are_changed(changes: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    assert changed(before, **changes) == after


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("/v1/responses", {}, {"max_output_tokens": 7}),
        ("/v1/messages", {"max_tokens": 9}, {"max_tokens": 7}),
        ("/api/chat", {}, {"options": {"num_predict": 7}}),
        ("/api/generate", {"options": {"num_predict": -1, "seed": 1}}, {"options": {"num_predict": 7, "seed": 1}}),
        ("/completion", {}, {"n_predict": 7}),
        ("/v1/completions", {}, {"max_tokens": 7}),
        ("/v1beta/openai/chat/completions?key=1", {}, {"max_tokens": 7}),
    ],
)
def test_the_limit_of_generated_tokens_holds_in_every_protocol(
    path: str, body: dict[str, Any], limit: dict[str, Any]
) -> None:
    assert changed(body, path, limits={"max_tokens": 7}) == limit


@pytest.mark.parametrize(
    ("path", "body", "after"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "Hi"}]},
            {"messages": [{"role": "system", "content": "X"}, {"role": "user", "content": "Hi"}]},
        ),
        (
            CHAT,
            {"messages": [{"role": "system", "content": "A"}]},
            {"messages": [{"role": "system", "content": "A\n\nX"}]},
        ),
        (
            CHAT,
            {"messages": [{"role": "developer", "content": [{"type": "text", "text": "A"}]}]},
            {
                "messages": [
                    {"role": "developer", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "X"}]}
                ]
            },
        ),
        ("/v1/messages", {"messages": []}, {"messages": [], "system": "X"}),
        ("/v1/messages", {"system": "A"}, {"system": "A\n\nX"}),
        (
            "/v1/messages",
            {"system": [{"type": "text", "text": "A"}]},
            {"system": [{"type": "text", "text": "A"}, {"type": "text", "text": "X"}]},
        ),
        ("/v1/responses", {"input": "Hi"}, {"input": "Hi", "instructions": "X"}),
        ("/api/generate", {"prompt": "Hi"}, {"prompt": "Hi", "system": "X"}),
        ("/v1/completions", {"prompt": "Hi"}, {"prompt": "Hi"}),
    ],
)
def test_a_system_text_is_added_where_the_protocol_has_its_system_prompt(
    path: str, body: dict[str, Any], after: dict[str, Any]
) -> None:
    assert changed(body, path, system="X") == after


def test_every_other_byte_stays_as_it_is() -> None:
    body = b'{ "model" : "m",\n "temperature": 1.50, "x":[1 ,2] , "messages": []}'
    request = WireRequest(path=CHAT, body=body)
    changes = RequestChanges(force={"temperature": 1}, limits={"max_tokens": 5})
    assert rewrite(request, [changes]).body == (
        b'{"max_tokens":5, "model" : "m",\n "temperature": 1, "x":[1 ,2] , "messages": []}'
    )


OTHER_PATHS = [
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/decisions",
    "/api/embed",
]


@pytest.mark.parametrize("path", OTHER_PATHS)
def test_only_chats_and_completions_get_what_is_about_generating(path: str) -> None:
    request = WireRequest(path=path, body=b'{"temperature": 1}')
    changes = RequestChanges(
        force={"temperature": 0, "chat_template_kwargs.x": 1},
        default={"top_p": 1},
        limits={"max_tokens": 5},
        system="X",
    )
    assert rewrite(request, [changes]) is request


@pytest.mark.parametrize("path", OTHER_PATHS)
def test_requests_of_every_kind_are_changed(path: str) -> None:
    before = {"user": "u", "input": "x", "size": 9, "old": 1}
    changes: dict[str, Any] = {
        "drop": ("user",), "rename": {"old": "new"}, "default": {"voice": "alloy"}, "limits": {"size": 4},
        "force": {"priority": 1, "options.num_ctx": 2},
    }  # fmt: skip
    assert changed(before, path, **changes) == {
        "input": "x", "size": 4, "new": 1, "voice": "alloy", "priority": 1, "options": {"num_ctx": 2}
    }  # fmt: skip


def test_what_is_about_vectors_or_rankings_is_not_added_to_chats() -> None:
    changes: dict[str, Any] = {"force": {"dimensions": 256}, "default": {"encoding_format": "float", "top_n": 3}}
    assert changed({"messages": []}, **changes) == {"messages": []}
    assert changed({}, "/v1/embeddings", **changes) == {"dimensions": 256, "encoding_format": "float", "top_n": 3}


def test_nothing_to_change_leaves_the_same_request() -> None:
    request = WireRequest(path=CHAT, body=b'{"temperature": 1}')
    assert rewrite(request, []) is request
    assert (
        rewrite(request, [RequestChanges(drop=("a",), default={"temperature": 2}, force={"temperature": 1})]) is request
    )


def test_a_body_that_is_no_object_is_left_to_the_backend() -> None:
    request = WireRequest(path=CHAT, body=b"[1]")
    assert rewrite(request, [RequestChanges(force={"a": 1})]) is request


def test_a_preview_shows_every_change_as_a_diff() -> None:
    request = WireRequest(path=CHAT, body=b'{"model":"m","messages":[]}')
    changes = RequestChanges(drop=("logit_bias",), limits={"max_tokens": 100}, force={"temperature": 0}, system="X")
    lines = [line.replace(" ", "").rstrip(",") for line in preview(request, [changes])]
    assert {'-"logit_bias":"…"', '-"max_tokens":200', '+"max_tokens":100', '+"temperature":0', '+"content":"X"'} <= set(
        lines
    )
    embedding = preview(WireRequest(path="/v1/embeddings", body=b"{}"), [RequestChanges(force={"dimensions": 256})])
    assert "".join(embedding).count('"dimensions": 256') == 1
