"""Sampling parameters of other servers under the names of llama-server's requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_OLLAMA: Final[Mapping[str, str]] = {
    **{
        name: name
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "repeat_penalty",
                     "repeat_last_n", "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta")
    },
    "num_predict": "max_tokens",
}  # fmt: skip


def request_parameter(name: str, value: Any) -> tuple[str, Any] | None:
    """The member of a request, and its value, for a parameter of Ollama's; `None` if there is none."""
    member = _OLLAMA.get(name)
    if member is None or isinstance(value, dict):
        return None
    return member, list(value) if isinstance(value, list | tuple) else value


def whole_number(value: Any, least: int) -> int | None:
    """The value if it is a whole number of at least `least`, else `None`."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= least else None
