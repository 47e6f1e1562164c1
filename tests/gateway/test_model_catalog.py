"""The catalog: which models exist, under which names, and who serves them."""

from __future__ import annotations

import msgspec
import pytest

from hostler.adapters.errors import BadRequest, ModelNotFound, ModelUnavailable
from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.placements import rules_of
from hostler.gateway.settings import VariantSettings
from hostler.profiles.presets import Preset
from hostler.profiles.request_rules import RequestRules
from hostler.supervisor.contract import HostStatus, ModelStatus, ProfileInfo

BACKENDS = {
    "cloud": BackendSettings(kind="openai", url="https://cloud.example", models={"far": "far-1"}),
    "asleep": BackendSettings(kind="supervisor", url="http://asleep:8080", models={"big": "big"}),
    "awake": BackendSettings(kind="supervisor", url="http://awake:8080"),
}


def test_a_model_known_by_name_only_is_as_old_as_the_gateway() -> None:
    catalog = Catalog(BACKENDS, tuple(BACKENDS), version="1", since=1_700_000_000.7)
    before = {card.name: card.created for card in catalog.listing.cards}
    catalog.update_host("awake", HostStatus(profiles=(ProfileInfo(name="own", modified_at=1_600_000_000.2),)))
    after = {card.name: card.created for card in catalog.listing.cards}
    assert before == {"far": 1_700_000_000, "big": 1_700_000_000}
    assert after == {**before, "own": 1_600_000_000}


BOX = BackendSettings(kind="ollama", url="http://box.lan:11434")
ROUTER = BackendSettings(kind="openai", url="https://router.example/api/v1", models={"router/*": "*"})


def models(*names: str) -> tuple[RemoteModel, ...]:
    return tuple(RemoteModel(name=name, context=4096) for name in names)


def catalog(**backends: BackendSettings) -> Catalog:
    return Catalog(backends, tuple(backends), version="1")


def places(subject: Catalog, name: str) -> list[tuple[str, str]]:
    return [(place.backend, place.name_there) for place in subject.find(name).places]


def test_models_appear_with_their_backend_and_go_with_it() -> None:
    subject = catalog(box=BOX)
    for name in ("qwen3:8b", None):
        with pytest.raises(ModelUnavailable, match="have not reported theirs: box") as early:
            subject.find(name)
        assert (early.value.final, early.value.retry_after_s) == (False, 5.0)
    subject.update_models("box", models("qwen3:8b", "llama3.2:latest"))
    assert subject.listing.names() == ["llama3.2:latest", "qwen3:8b"]
    assert [places(subject, name) for name in ("qwen3:8b", "QWEN3:8B", "llama3.2", "library/llama3.2:latest")] == [
        [("box", "qwen3:8b")],
        [("box", "qwen3:8b")],
        [("box", "llama3.2:latest")],
        [("box", "llama3.2:latest")],
    ]
    subject.update_models("box", ())
    assert subject.listing.names() == []
    with pytest.raises(ModelNotFound, match="there are no models"):
        subject.find("qwen3:8b")


def test_a_model_can_be_asked_for_at_a_certain_backend() -> None:
    subject = catalog(box=BOX)
    subject.update_models("box", models("qwen3:8b"))
    assert places(subject, "box/qwen3:8b") == [("box", "qwen3:8b")]
    with pytest.raises(ModelNotFound):
        subject.find("box/other")


def test_a_wildcard_lists_what_exists_and_passes_on_what_does_not() -> None:
    subject = catalog(router=ROUTER)
    subject.update_models("router", models("openai/gpt-5"))
    assert subject.listing.names() == ["router/openai/gpt-5"]
    assert places(subject, "router/openai/gpt-5") == [("router", "openai/gpt-5")]
    passed = subject.find("router/openai/gpt-6")
    assert [place.name_there for place in passed.places] == ["openai/gpt-6"]
    assert passed.model == "router/*", "names that clients make up are no names of the catalog"


def test_a_hosts_model_is_replaced_by_local_servers_and_by_those_that_the_settings_name() -> None:
    pc = BackendSettings(kind="supervisor", url="http://pc:8080")
    cloud = BackendSettings(kind="openai", url="https://cloud.example", models={"m": "vendor/m"})
    other = BackendSettings(kind="openai", url="https://other.example")
    subject = catalog(pc=pc, box=BOX, cloud=cloud, other=other)
    subject.update_models("box", models("m:latest"))
    subject.update_models("other", models("m"))
    subject.update_host("pc", HostStatus(profiles=(ProfileInfo(name="m", context=8192),)))
    assert places(subject, "m") == [("pc", "m"), ("box", "m:latest"), ("cloud", "vendor/m")]
    assert subject.listing.names() == ["box/m:latest", "m", "other/m"]
    assert subject.find("m").card.context == 8192


def test_a_host_that_was_never_reached_keeps_servers_models_local() -> None:
    subject = catalog(asleep=BackendSettings(kind="supervisor", url="http://asleep:8080"), box=BOX)
    subject.update_models("box", models("m"))
    assert places(subject, "m") == [("asleep", "m"), ("box", "m")]
    assert subject.find("m").local_only
    subject.update_host("asleep", HostStatus())
    assert places(subject, "m") == [("box", "m")]
    assert not subject.find("m").local_only


def test_models_of_servers_have_presets_too() -> None:
    subject = catalog(box=BOX)
    subject.update_models("box", models("m"))
    subject.set_presets({"mine": Preset(model="m", system="Be brief.")})
    assert (subject.find("mine").model, places(subject, "mine")) == ("m", [("box", "m")])


def test_states_of_hosts_do_not_rebuild_what_servers_have() -> None:
    subject = catalog(pc=BackendSettings(kind="supervisor", url="http://pc:8080"), box=BOX)
    subject.update_models("box", models("m"))
    subject.update_host("pc", HostStatus(profiles=(ProfileInfo(name="own"),)))
    before = subject.find("m")
    subject.update_host("pc", HostStatus(profiles=(ProfileInfo(name="own"),), generation=2))
    assert subject.find("m") is before


def test_a_variant_is_a_model_of_its_own_that_its_base_runs_for() -> None:
    rules, variant = RequestRules(drop=("a",)), RequestRules(force={"reasoning_effort": "high"})
    box = msgspec.structs.replace(BOX, request=RequestRules(drop=("b",)))
    variants = {"m:high": VariantSettings(model="m", request=variant), "x:high": VariantSettings(model="x")}
    subject = Catalog({"pc": BACKENDS["awake"], "box": box}, ("pc", "box"), version="1", variants=variants)
    subject.update_models("box", models("m"))
    subject.update_host("pc", HostStatus(profiles=(ProfileInfo(name="m", context=8192, request=rules),)))
    found = subject.find("m:high")
    assert (found.model, found.card.name, found.card.context) == ("m", "m:high", 8192)
    assert [rules_of(found, place) for place in found.places] == [(rules, variant), (rules, variant, box.request)]
    assert [rules_of(subject.find("m"), place) for place in subject.find("m").places] == [
        (rules,),
        (rules, box.request),
    ]
    assert found.card.digest != subject.find("m").card.digest
    with pytest.raises(ModelNotFound):
        subject.find("x:high")


def host(*profiles: ProfileInfo, loaded: str = "") -> HostStatus:
    states = [ModelStatus(model=loaded, state="ready", since=0.0, generation=1)] if loaded else []
    return HostStatus(profiles=profiles, models=tuple(states))


def test_the_only_chat_model_is_the_default_one() -> None:
    subject = catalog(pc=BackendSettings(kind="supervisor", url="http://pc:8080"))
    chat, vectors = ProfileInfo(name="chat"), ProfileInfo(name="vectors", embeddings=True)
    subject.update_host("pc", host(chat, vectors))
    assert (subject.listing.default, subject.find(None).model, subject.default_for("completion")) == (
        "chat",
        "chat",
        None,
    )
    subject.update_host("pc", host(chat, vectors, ProfileInfo(name="hidden", listed=False)))
    assert subject.find(None).model == "chat"
    subject.update_host("pc", host(chat, vectors, ProfileInfo(name="other")))
    assert subject.listing.default is None
    with pytest.raises(BadRequest, match="no model named"):
        subject.find(None)
    subject.update_host("pc", host(chat, ProfileInfo(name="other", default=True)))
    assert subject.find(None).model == "other"


def test_chats_without_a_model_do_not_go_to_one_for_embeddings() -> None:
    subject = catalog(pc=BackendSettings(kind="supervisor", url="http://pc:8080"))
    chat, vectors = ProfileInfo(name="chat"), ProfileInfo(name="vectors", embeddings=True)
    subject.update_host("pc", host(chat, vectors, loaded="vectors"))
    assert (subject.find(None).model, subject.default_for("completion")) == ("vectors", "chat")
    subject.update_host("pc", host(chat, vectors, loaded="chat"))
    assert subject.default_for("completion") is None


def test_requests_without_a_model_go_to_the_only_one_of_their_kind() -> None:
    subject = catalog(pc=BackendSettings(kind="supervisor", url="http://pc:8080"))
    chat, other, vectors = ProfileInfo(name="chat"), ProfileInfo(name="other"), ProfileInfo(name="v", embeddings=True)
    subject.update_host("pc", host(chat, other, vectors))
    assert (subject.default_for("embedding"), subject.default_for("completion")) == ("v", None)
    subject.update_host("pc", host(chat, vectors, loaded="chat"))
    assert (subject.default_for("embedding"), subject.default_for("rerank")) == ("v", None)
    subject.update_host("pc", host(chat, vectors, ProfileInfo(name="w", embeddings=True), loaded="chat"))
    assert subject.default_for("embedding") is None
    subject.update_host("pc", host(vectors, ProfileInfo(name="w", embeddings=True), loaded="w"))
    assert subject.default_for("embedding") is None


@pytest.mark.parametrize(
    ("service", "names"),
    [
        ("completion", "2 models for chat: a, b"),
        ("embedding", "the only model for embeddings: v"),
        (None, "3 models"),
    ],
)
def test_errors_name_the_models_that_can_answer_the_kind_of_request(service: str | None, names: str) -> None:
    subject = catalog(pc=BackendSettings(kind="supervisor", url="http://pc:8080"))
    subject.update_host(
        "pc", host(ProfileInfo(name="a"), ProfileInfo(name="b"), ProfileInfo(name="v", embeddings=True))
    )
    with pytest.raises(BadRequest, match=f'set "model": {names}'):
        subject.find(None, service)
    with pytest.raises(ModelNotFound, match=f"does not exist; {names}"):
        subject.find("gone", service)


def test_errors_say_that_no_model_can_answer_the_kind_of_request() -> None:
    subject = catalog(pc=BackendSettings(kind="supervisor", url="http://pc:8080"))
    subject.update_host("pc", host(ProfileInfo(name="a"), ProfileInfo(name="b")))
    for name, service, text in (
        (None, "rerank", "none loaded; none of 2 models is known to be for reranking: a, b"),
        (None, "transcriptions", "none loaded; none of 2 models is known to be for transcriptions: a, b"),
        ("gone", "embedding", "does not exist; none of 2 models is known to be for embeddings: a, b"),
    ):
        with pytest.raises((BadRequest, ModelNotFound), match=text):
            subject.find(name, service)
