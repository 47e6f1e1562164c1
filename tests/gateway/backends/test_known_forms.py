"""Which form of a request a target gets after it has rejected another one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hostler.adapters.canonical import ChatRequest, Origin
from hostler.adapters.errors import BackendRejected
from hostler.gateway.backends.known_forms import FORM_KNOWN_S, KnownForms
from hostler.gateway.context import Attempt, Target
from hostler.supervisor.contract import EngineAddress

REQUEST = ChatRequest(origin=Origin(wire="responses", operation="responses"), model="m")
CHAT = msgspec.structs.replace(REQUEST, origin=msgspec.structs.replace(REQUEST.origin, wire="openai"))
LACKS = BackendRejected("no route", backend="b", wire="openai", backend_status=404, headers={}, body=b"")
ENGINE = EngineAddress(host="127.0.0.1", port=1, key="k", model="m", generation=1, context=1, parallel=1)


def context(backend: str = "b", model: str = "m", address: EngineAddress | None = None) -> Any:
    attempt = Attempt(target=Target(backend=backend, model=model, name_there=model), address=address)
    return SimpleNamespace(current=attempt, adapter=SimpleNamespace(amend=lambda request, error: CHAT))


@pytest.mark.parametrize(
    ("other", "knows"),
    [
        (context(model="other"), True),
        (context(backend="another"), False),
    ],
    ids=["another-model-of-a-backend", "another-backend"],
)
def test_a_backend_is_one_program(other: Any, knows: bool) -> None:
    forms = KnownForms(lambda: 0.0)
    forms.learn(context(), REQUEST, CHAT, LACKS)
    assert (forms.apply(other, REQUEST) is CHAT) == knows


def test_each_engine_of_a_host_is_a_program_of_its_own() -> None:
    forms = KnownForms(lambda: 0.0)
    forms.learn(context(address=ENGINE), REQUEST, CHAT, LACKS)
    assert forms.apply(context(address=ENGINE), REQUEST) is CHAT
    assert forms.apply(context(model="other", address=ENGINE), REQUEST) is REQUEST


def test_an_update_is_noticed_after_a_while() -> None:
    now = [0.0]
    forms = KnownForms(lambda: now[0])
    forms.learn(context(), REQUEST, CHAT, LACKS)
    now[0] = FORM_KNOWN_S
    assert forms.apply(context(), REQUEST) is REQUEST


def test_a_request_that_was_only_shortened_says_nothing_about_the_route() -> None:
    forms = KnownForms(lambda: 0.0)
    forms.learn(context(), REQUEST, msgspec.structs.replace(REQUEST), LACKS)
    assert forms.apply(context(), REQUEST) is REQUEST
