"""Model admin: operations on models are carried out step by step, and only with the right scope."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fakes.requests import FakeWriter, make_context

from hostler.adapters.canonical import (
    CopyModel,
    CreateModel,
    DeleteModel,
    FindBlob,
    ModelOperation,
    Origin,
    ProgressStep,
    PullModel,
)
from hostler.adapters.errors import Forbidden, NotFound
from hostler.gateway.context import Client
from hostler.gateway.middleware.model_admin import ModelAdminMiddleware
from hostler.profiles.presets import Preset

pytestmark = pytest.mark.anyio

ORIGIN = Origin(wire="ollama", operation="pull", body=b"")
STEP = ProgressStep(step="fetching", completed=1, total=2)


class FakeModelAdmin:
    """Notes what it is to do; `present` are the models that need no download, `blobs` the files it has."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.present = {"here"}
        self.blobs = {"sha256:known"}

    def __getattr__(self, name: str) -> Any:
        if name in ("here", "is_present"):
            return lambda model: model in self.present
        if name in ("has_file", "has_blob"):
            return self._has_file
        if name in ("pull", "create"):
            return lambda order, report: self._do(name, report)
        if name in ("copy", "delete"):
            return lambda order: self._do(name, None)
        raise AttributeError(name)

    async def _has_file(self, digest: str) -> bool:
        return digest in self.blobs

    async def _do(self, name: str, report: Any) -> None:
        self.done.append(name)
        if report is not None:
            await report(STEP)


async def unreachable() -> None:
    raise AssertionError("must not be called")


async def carry_out(order: ModelOperation, *scopes: Any) -> tuple[FakeModelAdmin, FakeWriter]:
    subject, writer = FakeModelAdmin(), FakeWriter()
    middleware = ModelAdminMiddleware(cast(Any, None), model_admin=cast(Any, subject))
    client = Client(name="anna", scopes=frozenset(scopes or ("infer", "read", "operate")))
    await middleware.dispatch(make_context(order, writer=writer, client=client), unreachable)
    return subject, writer


@pytest.mark.parametrize(
    ("order", "done", "steps"),
    [
        (PullModel(origin=ORIGIN, model="new"), "pull", 1),
        (CreateModel(origin=ORIGIN, model="new", preset=Preset(model="here")), "create", 1),
        (CopyModel(origin=ORIGIN, model="here", destination="new"), "copy", 0),
        (DeleteModel(origin=ORIGIN, model="here"), "delete", 0),
    ],
)
async def test_each_operation_is_carried_out_and_its_steps_are_written(
    order: ModelOperation, done: str, steps: int
) -> None:
    subject, writer = await carry_out(order)
    assert subject.done == [done]
    assert [chunk.step for chunk in writer.chunks] == [STEP] * steps
    assert writer.ended


async def test_a_known_blob_is_found_and_an_unknown_one_is_not() -> None:
    _, writer = await carry_out(FindBlob(origin=ORIGIN, model=None, digest="sha256:known"))
    assert writer.ended
    with pytest.raises(NotFound, match="sha256:other"):
        await carry_out(FindBlob(origin=ORIGIN, model=None, digest="sha256:other"))


async def test_only_operators_may_pull_what_is_not_there() -> None:
    subject, _ = await carry_out(PullModel(origin=ORIGIN, model="here"), "infer")
    assert subject.done == ["pull"]
    with pytest.raises(Forbidden, match="operate"):
        await carry_out(PullModel(origin=ORIGIN, model="new"), "infer")


async def test_everything_else_passes() -> None:
    called = []

    async def call_next() -> None:
        called.append(True)

    middleware = ModelAdminMiddleware(cast(Any, None), model_admin=cast(Any, FakeModelAdmin()))
    await middleware.dispatch(make_context(), call_next)
    assert called == [True]
