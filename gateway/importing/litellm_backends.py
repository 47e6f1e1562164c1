"""Deployments of LiteLLM, grouped into backends: a name is served once by each, in the order of the chain."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from hostler.gateway.importing.litellm_models import Deployment


class DeploymentBackends:
    """The section `backends`, and the chain."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, Any]] = {}
        self._ranks: dict[str, float] = {}

    def add(self, deployment: Deployment, name: str, rank: float) -> None:
        """Serve `name` by this deployment; one of a higher rank is tried later."""
        wanted = deployment.model
        for backend, given in self.sections.items():
            same = {key: value for key, value in given.items() if key not in ("models", "prices", "describe")}
            # Limits are those of one deployment.
            apart = "limits" in same and set(given["models"].values()) != {wanted}
            if apart:
                continue
            if self._ranks[backend] == rank and same == dict(deployment.backend) and name not in given["models"]:
                self._extend(given, deployment, name)
                return
            if same == dict(deployment.backend) and given["models"].get(name) == wanted:
                return
        base = re.sub(r"[^A-Za-z0-9]+", "-", deployment.provider).strip("-")
        backend, number = base, 2
        while backend in self.sections:
            backend, number = f"{base}-{number}", number + 1
        self.sections[backend] = {**deployment.backend, "models": {}}
        self._ranks[backend] = rank
        self._extend(self.sections[backend], deployment, name)

    def _extend(self, given: dict[str, Any], deployment: Deployment, name: str) -> None:
        given["models"][name] = deployment.model
        if deployment.price is not None:
            given.setdefault("prices", {})[name] = dict(deployment.price)
        if deployment.description is not None:
            given.setdefault("describe", {})[deployment.model] = dict(deployment.description)

    @property
    def chain(self) -> list[str]:
        """The backends in the order in which they are tried."""
        return sorted(self.sections, key=lambda backend: self._ranks[backend])


class DeploymentNames:
    """The deployments by the names that clients use, of which some have a star."""

    def __init__(self) -> None:
        self._found: dict[str, list[Deployment]] = {}

    def add(self, name: str, deployments: Iterable[Deployment]) -> None:
        """Let the name stand for these deployments as well."""
        self._found.setdefault(name, []).extend(deployments)

    def all(self) -> list[str]:
        """The names, in order."""
        return list(self._found)

    def of(self, name: str) -> list[Deployment]:
        """The deployments for a name: its own, else those of the closest name with a star, as deployments for it alone."""
        if own := self._found.get(name):
            return own
        patterns = [each for each in self._found if _star(each, name) is not None]
        if not patterns:
            return []
        pattern = max(patterns, key=len)
        star = _star(pattern, name) or ""
        return [_for_one(each, name, star) for each in self._found[pattern]]


def _for_one(deployment: Deployment, name: str, star: str) -> Deployment:
    return msgspec.structs.replace(deployment, name=name, model=deployment.model.replace("*", star))


def _star(pattern: str, name: str) -> str | None:
    """What the star of the pattern stands for in the name."""
    head, found, tail = pattern.partition("*")
    fits = bool(found) and len(name) > len(head) + len(tail) and name.startswith(head) and name.endswith(tail)
    return name[len(head) : len(name) - len(tail)] if fits else None
