"""Models of backends without a supervisor: names, clashes, and who may replace whom."""

from __future__ import annotations

from typing import Any

from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.backend_settings import BackendSettings, ModelDescription
from hostler.gateway.plain_models import PlainBackend, PlainModel, plain_models

LOCAL, REMOTE = "http://box.lan", "https://cloud.example"


def backend(name: str, *models: str | RemoteModel, url: str = LOCAL, **settings: Any) -> PlainBackend:
    found = PlainBackend(name, BackendSettings(**{"kind": "openai", "url": url, **settings}))
    if models:
        found.report([RemoteModel(name=model) if isinstance(model, str) else model for model in models])
    return found


def served(*backends: PlainBackend, taken: frozenset[str] = frozenset()) -> dict[str, list[tuple[str, str]]]:
    """Where each name is served: backends with their names, in order."""
    by_name = {each.name: each for each in backends}
    models = plain_models(by_name, tuple(by_name), taken=taken, since=1)
    return {each.card.name: [(place.backend, place.name_there) for place in each.places] for each in models}


def only(*backends: PlainBackend) -> PlainModel:
    (model,) = plain_models(
        {each.name: each for each in backends}, [each.name for each in backends], taken=frozenset(), since=1
    )
    return model


def test_a_backend_without_settings_serves_what_it_has() -> None:
    assert served(backend("a", "x", "y")) == {"x": [("a", "x")], "y": [("a", "y")]}
    assert served(backend("a")) == {}


def test_a_name_that_several_have_can_be_had_from_each() -> None:
    assert served(backend("a", "m"), backend("b", "m", "n")) == {
        "m": [("a", "m"), ("b", "m")],
        "a/m": [("a", "m")],
        "b/m": [("b", "m")],
        "n": [("b", "n")],
    }


def test_spellings_of_one_name_are_one_name() -> None:
    assert served(backend("a", "llama3:latest"), backend("b", "Llama3"))["llama3:latest"] == [
        ("a", "llama3:latest"),
        ("b", "Llama3"),
    ]


def test_a_remote_backend_does_not_replace_a_local_one_by_chance() -> None:
    assert served(backend("near", "m"), backend("far", "m", url=REMOTE))["m"] == [("near", "m")]
    assert served(backend("far", "m", url=REMOTE), backend("near", "m"))["m"] == [("far", "m"), ("near", "m")]


def test_a_remote_backend_replaces_a_local_one_where_the_settings_say_so() -> None:
    cloud = backend("far", "vendor/m", url=REMOTE, models={"m": "vendor/m"})
    assert served(backend("near", "m"), cloud)["m"] == [("near", "m"), ("far", "vendor/m")]


def test_a_wildcard_for_one_model_replaces_every_other() -> None:
    box = backend("box", models={"*": "phi"})
    assert served(backend("a", "m"), box)["m"] == [("a", "m"), ("box", "phi")]


def test_a_wildcard_that_keeps_names_replaces_only_what_exists_there() -> None:
    cloud = backend("far", "m", url=REMOTE, models={"*": "*"})
    assert served(backend("a", "m", "n"), cloud) == {
        "m": [("a", "m"), ("far", "m")],
        "a/m": [("a", "m")],
        "far/m": [("far", "m")],
        "n": [("a", "n")],
    }


def test_a_name_of_a_host_is_served_by_the_host() -> None:
    assert served(backend("a", "m"), taken=frozenset({"m"})) == {"a/m": [("a", "m")]}


def test_mapped_names_are_listed_before_a_backend_was_reached() -> None:
    assert served(backend("a", models={"fast": "qwen"})) == {"fast": [("a", "qwen")]}


def test_what_a_backend_says_of_a_model_is_on_its_card() -> None:
    model = RemoteModel(name="m", context=32768, capabilities=("completion", "tools"), quantization="Q8_0", size=9)
    card = only(backend("a", model)).card
    assert (card.context, card.capabilities, card.size, card.kind) == (32768, ("completion", "tools"), 9, "chat")
    assert card.facts is not None and card.facts.quantization == "Q8_0"


def test_the_context_with_which_a_model_runs_counts() -> None:
    found = only(backend("a", RemoteModel(name="m", context=40960, running_context=8192)))
    assert (found.card.context, found.places[0].context) == (8192, 8192)


def test_settings_come_before_what_a_backend_says() -> None:
    describe = {"m*": ModelDescription(context=4096, capabilities=("embedding",), quantization="F16")}
    found = only(backend("a", RemoteModel(name="my", context=9, capabilities=("completion",)), describe=describe))
    assert (found.card.context, found.card.kind, found.places[0].context) == (4096, "embedding", 4096)
    assert only(backend("a", RemoteModel(name="m", context=9), context=7)).card.context == 7


def test_the_description_of_a_name_comes_before_a_patterns() -> None:
    describe = {"*": ModelDescription(context=1), "m": ModelDescription(context=2)}
    assert only(backend("a", "m", describe=describe)).card.context == 2


def test_a_mapped_model_has_what_is_known_of_the_one_there() -> None:
    model = RemoteModel(name="vendor/m", context=32768)
    assert only(backend("a", model, models={"m": "vendor/m"})).card.context == 32768


def test_names_are_passed_on_by_wildcards_alone() -> None:
    place = backend("a", "m", models={"or/*": "*"}).passes("or/new")
    assert place is not None and place.name_there == "new"
    assert backend("a", "m").passes("new") is None
