"""Names of models as Ollama's clients send them: which are none, and which ask for a cloud."""

from __future__ import annotations

import re

from hostler.adapters.errors import BadRequest, ModelNotFound
from hostler.adapters.model_names import short_name
from hostler.profiles.presets import is_name

# Wider than Ollama's own rule: a profile may be called `org/sub/model@v2`, and its own name must be accepted.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:/@-]{0,511}")
_CLOUD = (":cloud", "-cloud")

INVALID = "invalid model name"


def valid(name: str) -> bool:
    """Whether this could be the name of a model."""
    return _NAME.fullmatch(name.strip()) is not None


def named(name: str, *, missing: str | None = None) -> str:
    """The name as it was sent. Without one: `missing` as a `BadRequest`, or the error for the model named nothing."""
    if not name.strip():
        if missing is None:
            raise ModelNotFound("no model is named", model=name, param="model")
        raise BadRequest(missing, param="model")
    if not valid(name):
        raise BadRequest(INVALID, param="model")
    return name


def made(name: str) -> str | None:
    """The name under which a new model is kept; `None` for what cannot be one. Ollama's own, stricter rule."""
    plain = short_name(name)
    return plain if is_name(plain) else None


def of_cloud(name: str) -> bool:
    """Whether the name asks for a model that Ollama's cloud runs."""
    return name.strip().lower().endswith(_CLOUD)
