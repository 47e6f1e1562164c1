"""LiteLLM's deployments as backends: which names each serves, and in which order they are tried."""

from __future__ import annotations

from hostler.gateway.importing.litellm import import_litellm
from hostler.gateway.importing.litellm_backends import DeploymentNames
from hostler.gateway.importing.litellm_models import Deployment
from hostler.gateway.importing.report import Imported


def translate(text: str) -> Imported:
    return import_litellm(text, "config.yaml", prefix="hostler")


def deployment(name: str, model: str) -> Deployment:
    return Deployment(index=0, name=name, model=model, provider="openai", backend={})


def test_the_closest_name_with_a_star_stands_for_others() -> None:
    names = DeploymentNames()
    for name, model in (("*", "*"), ("big/*", "team/*"), ("big/one", "one")):
        names.add(name, [deployment(name, model)])
    found = {name: [each.model for each in names.of(name)] for name in ("big/one", "big/two", "small", "")}
    assert found == {"big/one": ["one"], "big/two": ["team/two"], "small": ["small"], "": []}


def test_names_that_a_star_stands_for_fall_back_as_well() -> None:
    text = """\
model_list: [{model_name: "*", litellm_params: {model: "openai/*", api_key: os.environ/K}}]
litellm_settings: {fallbacks: [{small: [large]}]}
"""
    imported = translate(text)
    found = imported.sections["backends"]
    chain = imported.sections["gateway"]["chain"]
    assert [dict(found[name]["models"]) for name in chain] == [{"*": "*", "small": "small"}, {"small": "large"}]
    assert not [note for note in imported.notes if note.kind == "missing"]


def test_each_organization_is_a_backend() -> None:
    given = "{model: openai/x, api_key: os.environ/K, organization: [one, os.environ/TWO]}"
    found = translate(f"model_list: [{{model_name: m, litellm_params: {given}}}]\n").sections["backends"]
    organizations = [each["headers"]["OpenAI-Organization"] for each in found.values()]
    assert organizations == ["one", "${env:TWO}"]
    assert all(each["models"] == {"m": "x"} for each in found.values())
