"""Model administration: pull, copy, create and delete, and what they refuse."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from hostler.adapters.canonical import CopyModel, CreateModel, DeleteModel, Origin, ProgressStep, PullModel
from hostler.adapters.errors import BadRequest, Forbidden, GatewayError, ModelNotFound, ModelUnavailable
from hostler.gateway.gateway_settings import LibrarySettings
from hostler.gateway.model_admin import GetModel, ModelAdmin
from hostler.gateway.model_catalog import Catalog
from hostler.profiles.blobs import BlobStore
from hostler.profiles.downloads import Cancellation
from hostler.profiles.library import Library, read_library
from hostler.profiles.presets import Preset
from hostler.profiles.resolution import resolve
from hostler.profiles.schema import ModelFacts, ProfileEntry
from hostler.profiles.sources import FetchProgress, ReportProgress, SourceError
from hostler.supervisor.contract import (
    Failure,
    HostStatus,
    ProfileInfo,
    SupervisorError,
    SupervisorUnreachable,
)

pytestmark = pytest.mark.anyio

ORIGIN = Origin(wire="ollama", operation="x")
FACTS = ModelFacts(architecture="llama", training_context=8192, chat_template="{{ messages }}")
SMOL = ProfileInfo(name="smol", aliases=("tiny",), context=2048, size=7, digest="ab" * 32, facts=FACTS)
FAR = ProfileInfo(name="far", context=2048, digest="cd" * 32)
BASES = {
    "smol": ProfileEntry(model="/smol.gguf", context=2048),
    "far": ProfileEntry(model="hf:a/b/far.gguf", context=2048),
}


class FakeSupervisor:
    """Fetches when `deliver` is set."""

    def __init__(self) -> None:
        self.pulled: list[str] = []
        self.error: Exception | None = None
        self.begun, self.deliver = anyio.Event(), anyio.Event()
        self.deliver.set()

    async def pull(self, model: str, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        self.pulled.append(model)
        self.begun.set()
        if self.error is not None:
            raise self.error
        report(FetchProgress(file="m.gguf", phase="downloading", completed=1, total=9))
        await self.deliver.wait()
        report(FetchProgress(file="m.gguf", phase="done", completed=9, total=9))


class Setup:
    """A `ModelAdmin` with its catalog, hosts and file."""

    def __init__(self, folder: Path, *, chain: tuple[str, ...] = ("local",), **rules: Any) -> None:
        self.file = folder / "models.yaml"
        self.hosts = {name: FakeSupervisor() for name in chain}
        self.catalog = Catalog({}, chain, version="1")
        self.steps: list[ProgressStep] = []
        self.get: GetModel = lambda *_: pytest.fail("must not be called")
        for name in chain:
            self.catalog.update_host(name, HostStatus(profiles=(SMOL, FAR)))
        self.model_admin = ModelAdmin(
            LibrarySettings(delete=True, **rules),
            self.file,
            catalog=self.catalog,
            supervisors=self.hosts,
            blobs=BlobStore(folder / "blobs", 1000),
            refresh=self.refresh,
            get_from_registry=lambda *arguments: self.get(*arguments),
            wall=lambda: 1_700_000_000.0,
        )

    async def refresh(self) -> None:
        """Like a reload: profiles reach the catalog through their host."""
        stored = self.stored
        infos = [
            ProfileInfo(name=profile.name, context=profile.context, size=7, digest="ef" * 32, facts=FACTS)
            for profile in resolve(BASES | dict(stored.profiles))
            if profile.name not in BASES
        ]
        self.catalog.update_host("local", HostStatus(profiles=(SMOL, FAR, *infos)))
        self.catalog.set_presets(stored.presets)

    @property
    def stored(self) -> Library:
        return read_library(self.file)[0]

    async def report(self, step: ProgressStep) -> None:
        self.steps.append(step)

    async def pull(self, model: str) -> None:
        await self.model_admin.pull(PullModel(origin=ORIGIN, model=model), self.report)

    async def create(
        self, model: str, base: str = "smol", *, context: int | None = None, template: str = "", **said: Any
    ) -> None:
        preset = Preset(model=base, **said)
        operation = CreateModel(origin=ORIGIN, model=model, preset=preset, context=context, template=template)
        await self.model_admin.create(operation, self.report)

    async def copy(self, model: str, destination: str) -> None:
        await self.model_admin.copy(CopyModel(origin=ORIGIN, model=model, destination=destination))

    async def delete(self, model: str) -> None:
        await self.model_admin.delete(DeleteModel(origin=ORIGIN, model=model))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_a_model_with_its_file_is_not_fetched(setup: Setup) -> None:
    assert (
        setup.model_admin.is_present("tiny")
        and setup.model_admin.is_present("nobody")
        and not setup.model_admin.is_present("far")
    )
    await setup.pull("tiny")
    assert [step.step for step in setup.steps] == ["looking", "fetching", "verifying", "writing", "done"]
    assert setup.steps[1] == ProgressStep(step="fetching", digest="ab" * 32, completed=7, total=7)
    assert setup.hosts["local"].pulled == []


async def test_a_pull_reports_progress(setup: Setup) -> None:
    host = setup.hosts["local"]
    host.deliver = anyio.Event()

    async def tell(stage: ProgressStep) -> None:
        setup.steps.append(stage)
        if stage.completed == 1:
            host.deliver.set()

    await setup.model_admin.pull(PullModel(origin=ORIGIN, model="far"), tell)
    moving, whole = [stage for stage in setup.steps if stage.step == "fetching"]
    assert (moving.completed, moving.total) == (1, 9) and moving.digest != whole.digest
    assert whole == ProgressStep(step="fetching", digest="cd" * 32, completed=9, total=9)


async def test_a_client_that_disconnects_cancels_its_pull(setup: Setup) -> None:
    host = setup.hosts["local"]
    host.deliver = anyio.Event()
    async with anyio.create_task_group() as clients:
        clients.start_soon(setup.pull, "far")
        await host.begun.wait()
        clients.cancel_scope.cancel()
    assert "done" not in [step.step for step in setup.steps]


async def test_the_first_reachable_host_pulls(tmp_path: Path) -> None:
    setup = Setup(tmp_path, chain=("local", "other"))
    setup.hosts["local"].error = SupervisorUnreachable("it sleeps")
    await setup.pull("far")
    assert (setup.hosts["local"].pulled, setup.hosts["other"].pulled) == (["far"], ["far"])
    setup.hosts["other"].error = SupervisorUnreachable("it sleeps, too")
    with pytest.raises(ModelUnavailable, match="other is unreachable"):
        await setup.pull("far")


async def test_why_a_fetch_failed_is_reported_without_paths(setup: Setup) -> None:
    words = "could not fetch m.gguf: put it into /home/me/models"
    setup.hosts["local"].error = SupervisorError(Failure(kind="source_unavailable", message=words))
    with pytest.raises(ModelUnavailable) as raised:
        await setup.pull("far")
    assert "/home" not in raised.value.message


async def test_a_copy_of_a_copy_outlives_the_first(setup: Setup) -> None:
    await setup.copy("smol", "one")
    await setup.copy("ONE:latest", "two")
    await setup.delete("one")
    assert set(setup.stored.presets) == {"two"}
    placement = setup.catalog.find("two")
    assert (placement.model, placement.card.name, placement.card.digest) == ("smol", "two", "ab" * 32)


async def test_a_copy_onto_itself_changes_nothing(setup: Setup) -> None:
    await setup.copy("smol", "SMOL")
    await setup.copy("smol", "one")
    await setup.copy("one", "one")
    assert set(setup.stored.presets) == {"one"}


@pytest.mark.parametrize("name", ["smol", "TINY", "Smol:latest", "library/far"])
async def test_a_model_of_the_configuration_is_never_replaced(setup: Setup, name: str) -> None:
    with pytest.raises(Forbidden, match="part of the configuration"):
        await setup.create(name, "smol", system="Hm.")
    with pytest.raises(Forbidden, match="part of the configuration"):
        await setup.delete(name)
    assert not setup.file.exists()


async def test_a_created_model_is_replaced_under_its_own_spelling(setup: Setup) -> None:
    await setup.create("Mario", system="You are Mario.")
    await setup.create("mario", system="You are Luigi.")
    assert {name: preset.system for name, preset in setup.stored.presets.items()} == {"Mario": "You are Luigi."}


async def test_a_context_of_its_own_makes_a_profile_limited_to_the_training_context(setup: Setup) -> None:
    await setup.create("long", context=4096)
    await setup.create("longest", context=1_000_000)
    await setup.create("same", context=2048)
    contexts = {name: entry.context for name, entry in setup.stored.profiles.items()}
    assert contexts == {"long": 4096, "longest": 8192}
    long = setup.catalog.find("long").card
    assert (long.modified_at, long.preset) == (1_700_000_000.0, setup.stored.presets["long"])
    assert setup.stored.presets["long"].parent == setup.stored.presets["same"].parent == "smol"
    assert setup.catalog.find("long").model == "long" and setup.catalog.find("same").model == "smol"


async def test_a_model_recreated_from_itself_keeps_its_profile(setup: Setup) -> None:
    await setup.create("long", context=4096, system="One.")
    await setup.create("long", "long", system="Two.")
    assert setup.stored.profiles["long"].context == 4096 and setup.stored.presets["long"].system == "Two."
    await setup.create("long", "long", context=1024)
    entry = setup.stored.profiles["long"]
    assert (entry.base, entry.context) == ("smol", 1024) and setup.stored.presets["long"].system == "Two."


async def test_a_profile_that_others_depend_on_is_kept(setup: Setup) -> None:
    await setup.create("long", context=4096)
    await setup.copy("long", "other")
    with pytest.raises(Forbidden, match="other depends on long"):
        await setup.delete("long")
    with pytest.raises(Forbidden, match="other depends on long"):
        await setup.copy("far", "long")
    await setup.delete("other")
    await setup.delete("long")
    assert setup.stored == Library()


async def test_only_the_models_own_template_is_accepted(setup: Setup) -> None:
    await setup.create("same", template="{{ messages }}")
    with pytest.raises(BadRequest, match="template is not supported"):
        await setup.create("new", template="{{ .Prompt }}")


async def test_a_context_beyond_that_of_a_remote_host_is_refused(tmp_path: Path) -> None:
    setup = Setup(tmp_path, chain=("elsewhere",))
    await setup.create("less", context=1024)
    assert setup.stored.profiles == {} and setup.catalog.find("less").model == "smol"
    with pytest.raises(BadRequest, match="exceeds the context of smol on its host, 2048"):
        await setup.create("more", context=4096)
    with pytest.raises(Forbidden, match="this gateway runs no engines"):
        files = {"m.gguf": "sha256:" + "0" * 64}
        await setup.model_admin.create(
            CreateModel(origin=ORIGIN, model="m", preset=Preset(model=""), files=files), setup.report
        )


async def test_an_unknown_model_is_not_found(setup: Setup) -> None:
    for order in (setup.pull("x"), setup.copy("x", "y"), setup.create("y", "x"), setup.delete("x")):
        with pytest.raises(ModelNotFound):
            await order


async def test_a_write_error_is_reported_without_paths(setup: Setup) -> None:
    setup.file.mkdir()
    with pytest.raises(GatewayError) as raised:
        await setup.copy("smol", "one")
    assert str(setup.file) not in raised.value.message and "see the gateway's log" in raised.value.message


async def test_what_was_edited_by_hand_is_kept(setup: Setup) -> None:
    setup.file.write_text(
        '# mine\npresets:\n  # about it\n  by-hand:\n    model: smol  # why\n    system: "costs $$5"\nprofiles: {}\n'
    )
    await setup.refresh()
    await setup.create("two", "by-hand", parameters={"stop": ("a", "b")})
    text = setup.file.read_text()
    assert all(words in text for words in ("# mine", "# about it", "# why", "costs $$5"))
    assert setup.stored.presets["two"].system == "costs $5"


async def test_concurrent_creates_are_all_stored(setup: Setup) -> None:
    async with anyio.create_task_group() as clients:
        for number in range(8):
            clients.start_soon(setup.copy, "smol", f"m{number}")
    assert set(setup.stored.presets) == {f"m{number}" for number in range(8)}


def gguf(**keys: str) -> bytes:
    """A model file without weights."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    told = {"general.architecture": "llama", **{name.replace("_", "."): value for name, value in keys.items()}}
    body = b"".join(text(name) + struct.pack("<I", 8) + text(value) for name, value in told.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(told)) + body + bytes(32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gguf(general_type="mmproj"), "a part of a model"),
        (gguf(general_type="adapter"), "a part of a model"),
        (b"\x80\x04pickled", "supplied file was not in GGUF format"),
        (gguf()[:40], "supplied file is damaged"),
    ],
)
async def test_a_damaged_or_partial_model_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    setup, store = Setup(tmp_path), BlobStore(tmp_path / "blobs", 1000)
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    upload = store.start_upload(digest)
    upload.write(content)
    upload.commit()
    operation = CreateModel(origin=ORIGIN, model="m", preset=Preset(model=""), files={"m.gguf": digest})
    with pytest.raises(BadRequest, match=words) as raised:
        await setup.model_admin.create(operation, setup.report)
    assert str(tmp_path) not in raised.value.message and not setup.file.exists()
    two = CreateModel(origin=ORIGIN, model="m", preset=Preset(model=""), files={"a": digest, "b": digest})
    with pytest.raises(BadRequest, match="exactly one GGUF file"):
        await setup.model_admin.create(two, setup.report)


async def test_an_unknown_model_of_a_registry_is_fetched_and_added(setup: Setup, tmp_path: Path) -> None:
    name = "hf.co/org/repo:Q4_K_M"
    asked: list[str] = []

    def get(wanted: str, report: ReportProgress, _: Cancellation) -> tuple[ProfileEntry, Preset | None]:
        asked.append(wanted)
        report(FetchProgress(file="m.gguf", phase="downloading", completed=3, total=9))
        return ProfileEntry(model="hf:org/repo/m.gguf", context=512), Preset(model=wanted, license=("MIT",))

    setup.get = get
    assert not setup.model_admin.is_present(name)
    await setup.model_admin.pull(PullModel(origin=ORIGIN, model=name), setup.report)
    assert asked == [name]
    assert [step.step for step in setup.steps][:1] == ["looking"] and setup.steps[-1].step == "done"
    assert setup.stored.profiles[name].context == 512
    assert setup.stored.presets[name].license == ("MIT",)
    assert setup.catalog.find(name).card.context == 512


async def test_a_failed_fetch_from_a_registry_adds_nothing(setup: Setup) -> None:
    def get(*_: object) -> tuple[ProfileEntry, Preset | None]:
        raise SourceError("could not fetch m.gguf: there is no disk. Put m.gguf into /secret/place/ or set model:")

    setup.get = get
    with pytest.raises(ModelUnavailable, match="there is no disk") as caught:
        await setup.model_admin.pull(PullModel(origin=ORIGIN, model="qwen3:8b"), setup.report)
    assert "/secret" not in str(caught.value)
    assert setup.stored == Library()


@pytest.mark.parametrize("name", ["My Model", "../m", "a\nb", "m:", "ü", "a/b/c/d"])
async def test_names_that_no_profile_can_have_are_refused(setup: Setup, name: str) -> None:
    setup.model_admin.check_new("")
    setup.model_admin.check_new("gemma-3:4b")
    with pytest.raises(BadRequest, match="letters, digits"):
        await setup.model_admin.add(name, ProfileEntry(model="hf:org/repo/m.gguf"), None)
    assert setup.stored == Library()


async def test_models_of_registries_need_an_engine_here_and_permission(tmp_path: Path) -> None:
    for subject, reason in (
        (Setup(tmp_path, change=False), "creating models is disabled"),
        (Setup(tmp_path, chain=("far",)), "runs no engines"),
    ):
        with pytest.raises(Forbidden, match=reason):
            await subject.model_admin.pull(PullModel(origin=ORIGIN, model="qwen3:8b"), subject.report)
