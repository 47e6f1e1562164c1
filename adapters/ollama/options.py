"""Ollama's `options` as sampling, with Ollama's own defaults for what is not said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hostler.adapters.canonical import Sampling
from hostler.adapters.errors import GatewayError

# How a model runs is its profile's business: these are checked and then left alone.
_LAUNCH = ("num_keep", "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")


def sampling(options: Mapping[str, Any]) -> Sampling:
    """The sampling that `options` ask for. Raises an error of status 500, as Ollama does, for a value of a wrong type.

    What is not said is what Ollama sends to its engine then: the engine's own defaults differ (`min_p` is 0.05 there).
    """
    seed, limit = _integer(options, "seed", -1), _integer(options, "num_predict", -1)
    for name in _LAUNCH:
        _integer(options, name, 0)
    if not isinstance(options.get("use_mmap"), bool | None):
        raise _wrong("use_mmap", "of type boolean")
    return Sampling(
        temperature=_number(options, "temperature", 0.8),
        top_p=_number(options, "top_p", 0.9),
        top_k=_integer(options, "top_k", 40),
        min_p=_number(options, "min_p", 0.0),
        typical_p=_number(options, "typical_p", 1.0),
        repeat_penalty=_number(options, "repeat_penalty", 1.0),
        repeat_last_n=_integer(options, "repeat_last_n", 64),
        presence_penalty=_number(options, "presence_penalty", 0.0),
        frequency_penalty=_number(options, "frequency_penalty", 0.0),
        seed=None if seed < 0 else seed,
        max_tokens=None if limit < 0 else limit,
        stop=tuple(_stop(options)) or None,
    )


def _number(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _wrong(name, "of type float32")
    return float(value)


def _integer(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _wrong(name, "of type integer")
    # As large as the engine can read.
    return max(-(2**31), min(int(value), 2**31 - 1 if name != "seed" else 2**32 - 1))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # more digits than any number has
        return False


def _stop(options: Mapping[str, Any]) -> list[str]:
    value = options.get("stop")
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong("stop", "of type array")
    if not all(isinstance(entry, str) for entry in value):
        raise _wrong("stop", "of an array of strings")
    # An empty one would stop every answer before its first word.
    return [entry for entry in value if entry]


def _wrong(name: str, kind: str) -> GatewayError:
    return GatewayError(f'option "{name}" must be {kind}', param="options")
