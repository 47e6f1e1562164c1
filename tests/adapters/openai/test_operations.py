"""OpenAI's routes."""

from __future__ import annotations

from hostler.adapters.openai.adapter import OpenAIAdapter


def test_every_operation_exists_with_and_without_prefix_and_slash(adapter: OpenAIAdapter) -> None:
    paths = {operation.path: operation.name for operation in adapter.operations}
    for path, name in (("/chat/completions", "chat"), ("/responses", "responses"), ("/models", "models")):
        assert [paths[p] for p in (f"/v1{path}", f"/v1{path}/", path, f"{path}/")] == [name] * 4
    assert paths["/v1/models/{id:path}"] == "model"
