"""LM Studio as a backend: OpenAI's protocol, its own list of models."""

from __future__ import annotations

from fakes import model_lists
from fakes.questions import answered
from fakes.requests import chat

from hostler.adapters.lmstudio.upstream import LMStudioUpstream


def test_requests_are_openais_and_models_come_from_its_own_list() -> None:
    upstream = LMStudioUpstream()
    assert upstream.build(chat(model="m"), model="there", stream=False).path == "/v1/chat/completions"
    report, _ = answered(upstream.discover({}), model_lists.LM_STUDIO)
    assert len(report.models) == 2
