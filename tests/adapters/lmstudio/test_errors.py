"""Errors in the form of LM Studio's v1 API."""

from __future__ import annotations

import json

from hostler.adapters.errors import ModelNotFound
from hostler.adapters.lmstudio.adapter import LMStudioAdapter

ADAPTER = LMStudioAdapter()


def test_an_unknown_model_is_an_error_in_lm_studios_form() -> None:
    operation = next(each for each in ADAPTER.operations if each.path == "/api/v1/models/load")
    response = ADAPTER.error_response(ModelNotFound("no such model", model="x"), operation)
    assert (response.status, json.loads(response.body)["error"]["type"]) == (404, "model_not_found")
