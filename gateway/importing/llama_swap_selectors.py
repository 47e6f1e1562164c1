"""Names of llama-swap that stand for one of several models, chosen for each request: here they stand for the first one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hostler.gateway.importing.report import ImportReport, plain_name
from hostler.gateway.importing.yaml_source import YamlSource

#: What the strategies do that a variant does not.
_STRATEGIES: Final[Mapping[str, str]] = {
    "warm": "another target that is loaded is not preferred; a request that names no model goes to the loaded one",
    "spillover": "requests beyond those it serves wait; a model that several hosts have is spread over them by itself",
}


def add_selectors(source: YamlSource, report: ImportReport, models: Mapping[str, str]) -> None:
    """Make each selector a variant of its first target. `models` are the names here of the models of the file."""
    offered = {str(each) for peer in source.mapping("peers") for each in _models_of(source, peer)}
    for name in source.mapping("selectors"):
        line, key = source.line("selectors", name), f"selectors.{name}"
        given = source.mapping("selectors", name)
        targets = [str(each) for each in source.items("selectors", name, "targets")]
        known = [models.get(each, each) for each in targets if each in models or each in offered]
        variant = plain_name(name)
        if not known or variant in models.values():
            report.missing(line, key, "none of its targets is a model here, or a model has its name")
            continue
        value: dict[str, Any] = {"model": known[0]}
        if about := given.get("description") or given.get("name"):
            value["description"] = str(about)
        report.set("variants", variant, value=value)
        if given.get("strategy") == "pin" and known[0] == models.get(targets[0], targets[0]):
            report.taken(line, key, f"variants.{variant}")
            continue
        why = _STRATEGIES.get(str(given.get("strategy")), f"there is no model {targets[0]}")
        report.changed(line, key, f"variants.{variant} stands for {known[0]} alone: {why}")


def _models_of(source: YamlSource, peer: str) -> list[Any]:
    given = source.mapping("peers", peer).get("models")
    return given if isinstance(given, list) else []
