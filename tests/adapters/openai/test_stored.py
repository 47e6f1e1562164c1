"""What requests of the responses API refer to, and what is stored of their responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import ChatRequest, StoredRequest
from hostler.adapters.errors import BadRequest, NotFound
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.stored_response import StoredResponse

ADAPTER = OpenAIAdapter()
USER = {"type": "message", "role": "user", "content": "Hello"}
ANSWER = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


class Stored:
    """One stored response with one item."""

    def __init__(self, *more: StoredResponse) -> None:
        first = StoredResponse(
            id="resp_1", at=0.0, body=raw({"id": "resp_1"}), input=(raw(USER),), output={"msg_1": raw(ANSWER)}
        )
        self.responses = {each.id: each for each in (first, *more)}

    def find(self, response_id: str) -> StoredResponse | None:
        return self.responses.get(response_id)

    def find_item(self, item_id: str) -> msgspec.Raw | None:
        return next((each.output[item_id] for each in self.responses.values() if item_id in each.output), None)

    def is_foreign(self, an_id: str) -> bool:
        return "_of_another" in an_id

    def history(self, response_id: str) -> Sequence[StoredResponse] | None:
        found = self.responses.get(response_id)
        return None if found is None else [found]


def request(**body: Any) -> ChatRequest:
    route = next(each for each in ADAPTER.operations if each.name == "responses")
    data = json.dumps({"model": "m", **body}).encode()
    decoded = ADAPTER.decode(route, Incoming(method="POST", path=route.path, body=data))
    assert isinstance(decoded, ChatRequest)
    return decoded


def with_stored(*, pass_on: bool = False, **body: Any) -> dict[str, Any]:
    """The body after its references were resolved."""
    resolved: dict[str, Any] = json.loads(ADAPTER.with_stored(request(**body), Stored(), pass_on=pass_on).origin.body)
    return resolved


def test_a_request_without_references_stays_as_it_is() -> None:
    plain = request(input=[USER], instructions="item_reference and previous_response_id are words here")
    assert ADAPTER.with_stored(plain, Stored(), pass_on=False) is plain


@pytest.mark.parametrize("reference", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}])
def test_references_become_their_items(reference: dict[str, str]) -> None:
    assert with_stored(input=[USER, reference, USER])["input"] == [USER, ANSWER, USER]


def test_a_previous_response_comes_first() -> None:
    body = with_stored(input="More", previous_response_id="resp_1", temperature=0.5)
    assert body["input"] == [USER, ANSWER, {"type": "message", "role": "user", "content": "More"}]
    assert (body["previous_response_id"], body["temperature"]) == (None, 0.5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "previous_response_id": "resp_9"}, "previous_response_id"),
        ({"input": [USER, {"type": "item_reference", "id": "msg_9"}]}, "input[1].id"),
    ],
)
def test_what_is_not_stored_is_refused_unless_a_backend_may_have_it(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        with_stored(**body)
    assert caught.value.param == param
    assert with_stored(pass_on=True, **body) == {"model": "m", **body}


@pytest.mark.parametrize(
    "reference",
    [
        {"input": "x", "previous_response_id": "resp_0123456789abcdef"},
        *(
            {"input": [USER, {"type": "item_reference", "id": f"{kind}_0123456789abcdef_0"}]}
            for kind in ("msg", "rs", "fc", "ctc")
        ),
    ],
)
def test_what_was_dropped_here_is_known_to_no_backend(reference: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="not found"):
        with_stored(pass_on=True, **reference)


@pytest.mark.parametrize(("store", "wanted"), [({}, True), ({"store": True}, True), ({"store": False}, False)])
def test_responses_are_stored_unless_the_request_says_otherwise(store: dict[str, bool], wanted: bool) -> None:
    assert ADAPTER.wants_stored(request(input="x", **store)) is wanted


def test_the_input_of_a_large_request_is_not_stored() -> None:
    asked = request(input="x" * 2_000_000)
    assert ADAPTER.wants_stored(asked)
    kept = ADAPTER.stored_response(asked, msgspec.json.encode({"id": "resp_2", "output": [ANSWER]}), 5.0, Stored())
    assert kept is not None
    assert (kept.input, list(kept.output), kept.complete) == ((), ["msg_1"], False)


def test_a_response_is_stored_with_the_items_that_it_answered() -> None:
    asked = request(input=[{"type": "item_reference", "id": "msg_1"}, USER], previous_response_id="resp_0")
    body = msgspec.json.encode({"id": "resp_2", "output": [{**ANSWER, "id": "msg_2"}, {"type": "odd"}]})
    kept = ADAPTER.stored_response(asked, body, 5.0, Stored())
    assert kept is not None
    assert (kept.id, kept.previous, kept.at, bytes(kept.body)) == ("resp_2", "resp_0", 5.0, body)
    assert [msgspec.json.decode(item) for item in kept.input] == [ANSWER, USER]
    assert list(kept.output) == ["msg_2", "item_resp_2_1"]


def test_what_is_no_response_is_not_stored() -> None:
    assert ADAPTER.stored_response(request(input="x"), b"[]", 0.0, Stored()) is None


def shown(kind: str, response_id: str = "resp_1", *, method: str = "GET", query: str = "") -> Any:
    route = next(each for each in ADAPTER.operations if each.name == kind)
    incoming = Incoming(method=method, path="/", query=query, path_params={"id": response_id})
    stored_request = ADAPTER.decode(route, incoming)
    assert isinstance(stored_request, StoredRequest)
    return json.loads(ADAPTER.stored_info(stored_request, Stored()).body)


def test_a_response_is_shown_as_it_was_sent() -> None:
    assert shown("response") == {"id": "resp_1"}
    assert shown("response", method="DELETE") == {"id": "resp_1", "object": "response", "deleted": True}
    with pytest.raises(NotFound):
        shown("response", "resp_9")


def test_input_items_have_ids_and_are_shown_in_pages() -> None:
    page = shown("input_items")
    (item,) = page["data"]
    assert (item["id"], item["content"]) == ("msg_1_in0", [{"type": "input_text", "text": "Hello"}])
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("msg_1_in0", "msg_1_in0", False)
    assert shown("input_items", query="after=msg_1_in0")["data"] == []
    for limit in ("0", "101", "x", "9" * 5000):
        with pytest.raises(BadRequest):
            shown("input_items", query=f"limit={limit}")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "previous_response_id": "resp_of_another"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_of_another"}]}, "input[0].id"),
        ({"input": [{"id": "msg_of_another"}]}, "input[0].id"),
    ],
)
def test_what_another_client_has_stored_is_never_passed_on(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match="not found") as raised:
        with_stored(pass_on=True, **body)
    assert raised.value.param == param


@pytest.mark.parametrize(("status", "is_kept"), [("queued", False), ("in_progress", False), ("incomplete", True)])
def test_an_unfinished_response_is_not_stored(status: str, is_kept: bool) -> None:
    body = msgspec.json.encode({"id": "resp_2", "status": status, "output": []})
    assert (ADAPTER.stored_response(request(input="x"), body, 5.0, Stored()) is not None) is is_kept


def test_a_response_stored_without_its_input_is_not_said_to_be_unknown() -> None:
    class Partly(Stored):
        def history(self, response_id: str) -> None:
            return None

    asked = request(input="x", previous_response_id="resp_1")
    with pytest.raises(BadRequest, match="without its whole conversation"):
        ADAPTER.with_stored(asked, Partly(), pass_on=False)


def test_background_responses_are_refused_whatever_the_backend() -> None:
    with pytest.raises(BadRequest, match="`background` is not supported"):
        request(input="x", background=True)
