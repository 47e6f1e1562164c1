"""Errors in the form of LM Studio's v1 API."""

from __future__ import annotations

import json

from hostler.adapters.errors import ModelNotFound, TooManyRequests
from hostler.adapters.lmstudio.adapter import LMStudioAdapter

ADAPTER = LMStudioAdapter()


def test_an_unknown_model_is_an_error_in_lm_studios_form() -> None:
    operation = next(each for each in ADAPTER.operations if each.path == "/api/v1/models/load")
    response = ADAPTER.error_response(ModelNotFound("no such model", model="x"), operation)
    assert (response.status, json.loads(response.body)["error"]["type"]) == (404, "model_not_found")


def test_a_busy_server_is_no_fault_of_the_request() -> None:
    response = ADAPTER.error_response(TooManyRequests("all backends are busy", model="x"), ADAPTER.operations[0])
    assert (response.status, json.loads(response.body)["error"]["type"]) == (429, "internal_error")
