"""Validation of model names in Ollama's requests."""

from __future__ import annotations

import re

from hostler.adapters.errors import BadRequest, ModelNotFound
from hostler.adapters.model_names import short_name
from hostler.profiles.presets import is_model_name

# Wider than Ollama's own rule: a profile may be called `org/sub/model@v2`, and its own name must be accepted.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:/@-]{0,511}")
_CLOUD = (":cloud", "-cloud")

INVALID = "invalid model name"


def is_valid(name: str) -> bool:
    """Whether this could be the name of a model."""
    return _NAME.fullmatch(name.strip()) is not None


def require_name(name: str, *, missing: str | None = None) -> str:
    """The name as sent. An empty one is a `BadRequest` with the message `missing`, or `ModelNotFound` without it."""
    if not name.strip():
        if missing is None:
            raise ModelNotFound("the request names no model", model=name, param="model")
        raise BadRequest(missing, param="model")
    if not is_valid(name):
        raise BadRequest(INVALID, param="model")
    return name


def new_name(name: str) -> str | None:
    """The short form under which a new model is stored; `None` if it breaks Ollama's own, stricter rule."""
    short = short_name(name)
    return short if is_model_name(short) else None


def is_cloud_model(name: str) -> bool:
    """Whether the name stands for a model that only Ollama's cloud runs."""
    return name.strip().lower().endswith(_CLOUD)
