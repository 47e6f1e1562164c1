"""Which paths of engines are about their state."""

from __future__ import annotations

import pytest

from hostler.adapters.engine_state import is_engine_state


@pytest.mark.parametrize(
    "path",
    [
        "/slots/0", "/props", "/v1/load_lora_adapter", "/sleep", "/Wake_Up", "/reset_prefix_cache/", "/flush_cache",
        "/update_weights_from_disk", "/get_server_info", "/v1/model/unload", "/v1/lora/load", "/load", "/free",
        "/v1/internal/model/load", "/sdapi/v1/unload-checkpoint", "/prefix/api/admin/reload_config", "/shutdown",
    ],
)  # fmt: skip
def test_what_changes_or_tells_an_engines_state_is_known(path: str) -> None:
    assert is_engine_state(path)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1/score", "/pooling", "/v1/classify", "/v1/decisions", "/v1/videos/v1/content", "/sdapi/v1/txt2img",
        "/v1/audio/new", "/inference", "/generate", "/prompt", "/tokenize", "/v1/downloads/free-text",
    ],
)  # fmt: skip
def test_what_is_about_inference_is_not(path: str) -> None:
    assert not is_engine_state(path)
