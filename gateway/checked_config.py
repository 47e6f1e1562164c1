"""Reads the configuration and checks that it can run: all mistakes at once, those of the text and those beyond it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hostler.gateway.config import ConfigError, Configuration, read
from hostler.profiles.store import FindModels

logger = logging.getLogger(__name__)

#: Returns what keeps a valid configuration from running. Each mistake starts with its key and a colon.
FindMistakes = Callable[[Configuration], Sequence[str]]

#: Settings whose check also depends on others: without those, their mistakes may be wrong.
_DEPENDS_ON: Mapping[str, tuple[str, ...]] = {
    "gateway.listen": ("gateway.api_keys_file",),
    "supervisor.listen": ("supervisor.token", "supervisor.token_file"),
    "supervisor.groups": ("profiles",),
    "supervisor.sets": ("profiles",),
    "supervisor.return_to_default_s": ("profiles",),
    "no backends are configured": ("backends",),
}


def read_checked(
    path: Path | None, environ: Mapping[str, str], find_mistakes: FindMistakes, find_models: FindModels | None = None
) -> Configuration:
    """The configuration at `path`, with the models that `find_models` finds, in which `find_mistakes` finds none.
    Raises `ConfigError` with all of them. Blocks.

    Whatever a file contains, nothing else is raised: a running gateway reads it, too.
    """
    try:
        found = read(path, environ, find_models=find_models)
        mistakes = find_mistakes(found)
    except ConfigError as error:
        further = [] if error.partial is None else _independent(find_mistakes, error.partial, error.omitted)
        raise ConfigError(*dict.fromkeys((*error.mistakes, *further))) from error
    except Exception as error:
        logger.exception("%s: unhandled exception", path)
        raise ConfigError(f"{path}: Internal error: {error!r}. Please report it.") from error
    if mistakes:
        raise ConfigError(*mistakes)
    return found


def _independent(find_mistakes: FindMistakes, partial: Configuration, omitted: Sequence[str]) -> list[str]:
    """The mistakes of what remains of a configuration that do not just follow from what is missing in it."""
    try:
        found = find_mistakes(partial)
    except Exception:
        logger.exception("%s: unhandled exception", partial.path)
        return []
    return [each for each in found if not any(_concerns(key, each) for key in omitted)]


def _concerns(omitted: str, mistake: str) -> bool:
    return any(_is_within(key, omitted) or _is_within(omitted, key) for key in _keys(mistake))


def _keys(mistake: str) -> Iterator[str]:
    """The settings that a mistake is about."""
    yield mistake.partition(": ")[0]
    for start, others in _DEPENDS_ON.items():
        if mistake.startswith(start):
            yield from others


def _is_within(key: str, outer: str) -> bool:
    return key == outer or key.startswith((f"{outer}.", f"{outer}["))
