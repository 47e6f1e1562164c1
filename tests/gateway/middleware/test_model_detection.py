"""Model detection: the name becomes a model, its preset and its candidates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from fakes.requests import FakeWriter, chat, make_context

from hostler.adapters.canonical import EmbedRequest, Origin, Passthrough, RerankRequest
from hostler.adapters.errors import BadRequest, ModelNotFound, ModelNotLoaded
from hostler.adapters.model_list import ModelCard
from hostler.gateway.context import KeyRules, RequestContext, Target
from hostler.gateway.middleware.model_detection import ModelDetectionMiddleware
from hostler.gateway.placements import Placement
from hostler.gateway.plain_models import CatalogBackend
from hostler.profiles.presets import Preset
from hostler.supervisor.contract import PromptIdentity

pytestmark = pytest.mark.anyio

TWO_PLACES = (
    CatalogBackend(backend="pc", name_there="m"),
    CatalogBackend(backend="cloud", name_there="vendor/m", context=4096),
)


def nowhere(*, sends: bool) -> Placement | None:
    return None


async def unexpected() -> None:
    raise AssertionError("must not be called")


async def never() -> bool:
    raise AssertionError("must not be called")


def placement(**fields: Any) -> Placement:
    return Placement(**{"model": "m", "card": ModelCard(name="m"), "places": TWO_PLACES, **fields})


async def detect(
    found: Placement, context: RequestContext, order: Any = lambda targets, prompt: targets, hosts: Any = ()
) -> list[str | None]:
    """Dispatch; returns the names that were looked up."""
    asked: list[str | None] = []

    def find(name: str | None, service: str | None) -> Placement:
        asked.append(name)
        return found

    called = []

    async def call_next() -> None:
        called.append(context.candidates)

    middleware = ModelDetectionMiddleware(
        cast(Any, None), find=find, without_model=nowhere, order=order, hosts=hosts, refresh=never
    )
    await middleware.dispatch(context, call_next)
    assert called == [context.candidates]
    return asked


async def test_a_name_becomes_the_model_and_its_candidates() -> None:
    context = make_context(chat(model="alias"))
    assert await detect(placement(), context) == ["alias"]
    assert (context.requested_model, context.model) == ("alias", "m")
    assert context.candidates == (
        Target(backend="pc", model="m", name_there="m"),
        Target(backend="cloud", model="m", name_there="vendor/m", context=4096),
    )


def detection_of(found: Placement) -> ModelDetectionMiddleware:
    return ModelDetectionMiddleware(
        cast(Any, None), find=lambda _, __: found, without_model=nowhere, order=lambda targets, _: targets, hosts=(),
        refresh=never, loaded_only=[r"\.js$"],
    )  # fmt: skip


def asked(path: str) -> Passthrough:
    return Passthrough(origin=Origin(wire="llamacpp", operation="upstream", path=path), model="m")


def placed(state: str, *, hosted: bool = True) -> Placement:
    card = ModelCard(name="m", state=cast(Any, state))
    return Placement(model="m", card=card, places=(CatalogBackend(backend="pc", name_there="m", hosted=hosted),))


@pytest.mark.parametrize("path", ["/app.js", "/assets/x.js"])
async def test_some_paths_of_engines_load_no_model(path: str) -> None:
    context = make_context(asked(path))
    detection = detection_of(placed("idle"))
    with pytest.raises(ModelNotLoaded, match=r"m is not loaded.*loaded_only has .*js") as caught:
        await detection.dispatch(context, unexpected)
    assert (caught.value.status, caught.value.final) == (409, True)


@pytest.mark.parametrize(
    ("path", "found"),
    [("/app.js", placed("loaded")), ("/app", placed("idle")), ("/app.js", placed("idle", hosted=False))],
)
async def test_other_paths_and_loaded_models_are_forwarded(path: str, found: Placement) -> None:
    context = make_context(asked(path))
    forwarded = []

    async def call_next() -> None:
        forwarded.append(context.model)

    await detection_of(found).dispatch(context, call_next)
    assert forwarded == ["m"]


async def test_the_encoder_is_bound_to_the_models_card() -> None:
    writer = FakeWriter()
    await detect(placement(), make_context(writer=writer))
    assert writer.encoder.card == ModelCard(name="m")


async def test_a_local_only_model_makes_its_requests_local_only() -> None:
    context = make_context()
    await detect(placement(local_only=True), context)
    assert context.local_only


async def test_a_preset_is_applied_to_the_request() -> None:
    context = make_context(chat(body=b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}]}'))
    await detect(placement(preset=Preset(model="m", system="Be brief.")), context)
    assert b"Be brief." in context.request.origin.body


async def test_candidates_are_reordered_only_where_there_is_a_choice_between_hosts() -> None:
    prompts: list[PromptIdentity | None] = []

    def reverse(targets: tuple[Target, ...], prompt: PromptIdentity | None) -> tuple[Target, ...]:
        prompts.append(prompt)
        return tuple(reversed(targets))

    context = make_context(chat(body=b'{"messages": [{"role": "user", "content": "Hello"}]}'))
    await detect(placement(), context, reverse, hosts={"pc"})
    assert [each.backend for each in context.candidates] == ["pc", "cloud"]
    assert (prompts, context.prompt) == ([], None)
    await detect(placement(), context, reverse, hosts={"pc", "cloud"})
    assert [each.backend for each in context.candidates] == ["cloud", "pc"]
    assert context.prompt is not None
    assert prompts == [context.prompt]


async def test_the_prompt_of_a_large_body_is_read_in_a_thread() -> None:
    body = b'{"messages": [{"role": "user", "content": "' + b"x" * 300_000 + b'"}]}'
    threads: list[bool] = []

    def order(targets: tuple[Target, ...], prompt: PromptIdentity | None) -> tuple[Target, ...]:
        assert prompt is not None
        threads.append(bool(prompt.marks))
        return targets

    await detect(placement(), make_context(chat(body=body)), order, hosts={"pc", "cloud"})
    assert threads == [True]


async def test_an_unknown_model_reaches_no_backend() -> None:
    asked = []

    async def refresh() -> bool:
        asked.append("refresh")
        return True

    def find(name: str | None, service: str | None) -> Placement:
        raise ModelNotFound("there is no such model", model=name)

    async def call_next() -> None:
        raise AssertionError("must not be called")

    middleware = ModelDetectionMiddleware(
        cast(Any, None),
        find=find,
        without_model=nowhere,
        order=lambda targets, prompt: targets,
        hosts=(),
        refresh=refresh,
    )
    with pytest.raises(ModelNotFound):
        await middleware.dispatch(make_context(), call_next)
    assert asked == ["refresh"]


async def test_a_model_that_a_server_has_since_a_moment_ago_is_found() -> None:
    known: list[Placement] = []

    async def refresh() -> bool:
        known.append(placement())
        return True

    def find(name: str | None, service: str | None) -> Placement:
        if not known:
            raise ModelNotFound("there is no such model", model=name)
        return known[0]

    async def call_next() -> None:
        pass

    context = make_context()
    middleware = ModelDetectionMiddleware(
        cast(Any, None),
        find=find,
        without_model=nowhere,
        order=lambda targets, prompt: targets,
        hosts=(),
        refresh=refresh,
    )
    await middleware.dispatch(context, call_next)
    assert context.model == "m"


@pytest.mark.parametrize(
    ("request_", "asked"),
    [
        (chat(model=None), ["completion"]),
        (EmbedRequest(origin=chat().origin), ["embedding"]),
        (RerankRequest(origin=chat().origin), ["rerank"]),
        (Passthrough(origin=Origin(wire="openai", operation="transcriptions")), ["transcriptions"]),
        (Passthrough(origin=Origin(wire="openai", operation="image_edits")), ["images"]),
        (Passthrough(origin=Origin(wire="openai", operation="unknown")), [None]),
    ],
)
async def test_a_request_without_a_model_gets_one_that_can_answer_its_kind(
    request_: Any, asked: list[str | None]
) -> None:
    names: list[str | None] = []

    def find(name: str | None, service: str | None) -> Placement:
        names.append(name)
        return placement()

    async def call_next() -> None:
        pass

    middleware = ModelDetectionMiddleware(
        cast(Any, None),
        find=find,
        without_model=nowhere,
        order=lambda targets, prompt: targets,
        hosts=(),
        refresh=never,
        default_for=lambda service: service,
    )
    await middleware.dispatch(make_context(request_), call_next)
    assert names == asked


@pytest.mark.parametrize(("own", "told"), [("quiet", ["quiet"]), (None, [])])
async def test_a_model_may_have_its_own_setting_of_progress(own: str | None, told: list[str]) -> None:
    context, found = make_context(chat(), writer=FakeWriter()), []
    context.writer.encoder = cast(Any, SimpleNamespace(set_progress=found.append, bind_model=lambda _: None))
    await detect(placement(card=ModelCard(name="m", progress=own)), context)
    assert found == told


async def test_a_request_without_a_model_names_only_those_that_its_key_may_use() -> None:
    def find(name: str | None, service: str | None) -> Placement:
        raise BadRequest("no model named; 2 models: secret, mine")

    async def call_next() -> None:
        raise AssertionError("must not be called")

    context = make_context(chat(model=None))
    context.client = msgspec.structs.replace(context.client, rules=KeyRules(models=("mine",)))
    middleware = ModelDetectionMiddleware(
        cast(Any, None), find=find, without_model=nowhere, order=lambda targets, _: targets, hosts=(), refresh=never
    )
    with pytest.raises(BadRequest, match="this API key may use: mine") as caught:
        await middleware.dispatch(context, call_next)
    assert "secret" not in str(caught.value)
