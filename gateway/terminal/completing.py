"""Names of models for the shell's completion: read from the configuration, nothing is started and nobody is asked."""

from __future__ import annotations

from typing import Any

import typer


def complete_model(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The configured names and aliases that begin like this, each with a word about it. Never fails, never prints."""
    parameters: dict[str, Any] = context.params
    try:
        from hostler.gateway import settings

        profiles = settings.read(settings.find_file(parameters.get("config"))).profiles
    except Exception:  # what is wrong with the file is told by the command itself, not in the middle of typing
        return []
    named = set(parameters.get("names") or ())
    found = []
    for profile in profiles:
        about = profile.description or f"{profile.context} tokens"
        found.append((profile.name, about))
        found += [(alias, f"is {profile.name}") for alias in profile.aliases]
    return [(name, about) for name, about in found if name.startswith(incomplete) and name not in named]
