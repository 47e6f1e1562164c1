"""The librarian: pulls on the host that answers, makes models that can be, and loses nothing on the way."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from hostler.adapters.errors import BadRequest, Forbidden, GatewayError, ModelNotFound, ModelUnavailable
from hostler.adapters.types import CopyModel, CreateModel, DeleteModel, Origin, ProgressStep, PullModel
from hostler.gateway.catalog import Catalog
from hostler.gateway.config import LibrarySettings
from hostler.gateway.model_admin import ModelAdmin
from hostler.profiles.blobs import BlobStore
from hostler.profiles.library import Library, read_library
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ModelFacts, ProfileEntry, resolve
from hostler.profiles.sources import FetchProgress
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


class Host:
    """A supervisor that fetches when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.begun, self.deliver = anyio.Event(), anyio.Event()
        self.deliver.set()

    async def pull(self, model: str, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        self.asked.append(model)
        self.begun.set()
        if self.error is not None:
            raise self.error
        report(FetchProgress(file="m.gguf", phase="downloading", completed=1, total=9))
        await self.deliver.wait()
        report(FetchProgress(file="m.gguf", phase="done", completed=9, total=9))


class Desk:
    """A librarian with its catalogue, its hosts and its file."""

    def __init__(self, folder: Path, *, chain: tuple[str, ...] = ("local",), **rules: Any) -> None:
        self.file = folder / "models.yaml"
        self.hosts = {name: Host() for name in chain}
        self.catalog = Catalog({}, chain, version="1")
        self.stages: list[ProgressStep] = []
        for name in chain:
            self.catalog.host(name, HostStatus(profiles=(SMOL, FAR)))
        self.model_admin = ModelAdmin(
            LibrarySettings(delete=True, **rules),
            self.file,
            catalog=self.catalog,
            supervisors=self.hosts,
            blobs=BlobStore(folder / "blobs", 1000),
            refresh=self.refresh,
            wall=lambda: 1_700_000_000.0,
        )

    async def refresh(self) -> None:
        """As a reload: profiles reach the catalogue through their host."""
        kept = self.kept
        infos = [
            ProfileInfo(name=profile.name, context=profile.context, size=7, digest="ef" * 32, facts=FACTS)
            for profile in resolve(BASES | dict(kept.profiles))
            if profile.name not in BASES
        ]
        self.catalog.host("local", HostStatus(profiles=(SMOL, FAR, *infos)))
        self.catalog.made(kept.presets)

    @property
    def kept(self) -> Library:
        return read_library(self.file)[0]

    async def tell(self, stage: ProgressStep) -> None:
        self.stages.append(stage)

    async def pull(self, model: str) -> None:
        await self.model_admin.pull(PullModel(origin=ORIGIN, model=model), self.tell)

    async def create(
        self, model: str, base: str = "smol", *, context: int | None = None, template: str = "", **said: Any
    ) -> None:
        preset = Preset(model=base, **said)
        order = CreateModel(origin=ORIGIN, model=model, preset=preset, context=context, template=template)
        await self.model_admin.create(order, self.tell)

    async def copy(self, model: str, destination: str) -> None:
        await self.model_admin.copy(CopyModel(origin=ORIGIN, model=model, destination=destination))

    async def delete(self, model: str) -> None:
        await self.model_admin.delete(DeleteModel(origin=ORIGIN, model=model))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_model_that_is_here_is_not_fetched(desk: Desk) -> None:
    assert desk.model_admin.here("tiny") and desk.model_admin.here("nobody") and not desk.model_admin.here("far")
    await desk.pull("tiny")
    assert [stage.step for stage in desk.stages] == ["looking", "fetching", "verifying", "writing", "done"]
    assert desk.stages[1] == ProgressStep(step="fetching", digest="ab" * 32, completed=7, total=7)
    assert desk.hosts["local"].asked == []


async def test_a_pull_tells_how_far_it_is(desk: Desk) -> None:
    host = desk.hosts["local"]
    host.deliver = anyio.Event()

    async def tell(stage: ProgressStep) -> None:
        desk.stages.append(stage)
        if stage.completed == 1:
            host.deliver.set()

    await desk.model_admin.pull(PullModel(origin=ORIGIN, model="far"), tell)
    moving, whole = [stage for stage in desk.stages if stage.step == "fetching"]
    assert (moving.completed, moving.total) == (1, 9) and moving.digest != whole.digest
    assert whole == ProgressStep(step="fetching", digest="cd" * 32, completed=9, total=9)


async def test_a_client_that_leaves_leaves_the_pull_of_its_host(desk: Desk) -> None:
    host = desk.hosts["local"]
    host.deliver = anyio.Event()
    async with anyio.create_task_group() as clients:
        clients.start_soon(desk.pull, "far")
        await host.begun.wait()
        clients.cancel_scope.cancel()
    assert "done" not in [stage.step for stage in desk.stages]


async def test_the_first_host_that_answers_is_asked(tmp_path: Path) -> None:
    desk = Desk(tmp_path, chain=("local", "other"))
    desk.hosts["local"].error = SupervisorUnreachable("it sleeps")
    await desk.pull("far")
    assert (desk.hosts["local"].asked, desk.hosts["other"].asked) == (["far"], ["far"])
    desk.hosts["other"].error = SupervisorUnreachable("it sleeps, too")
    with pytest.raises(ModelUnavailable, match="other does not answer"):
        await desk.pull("far")


async def test_why_a_file_cannot_be_had_is_told_without_its_path(desk: Desk) -> None:
    words = "could not fetch m.gguf: put it into /home/me/models"
    desk.hosts["local"].error = SupervisorError(Failure(kind="source_unavailable", message=words))
    with pytest.raises(ModelUnavailable) as raised:
        await desk.pull("far")
    assert "/home" not in raised.value.message


async def test_a_copy_of_a_copy_outlives_the_first(desk: Desk) -> None:
    await desk.copy("smol", "one")
    await desk.copy("ONE:latest", "two")
    await desk.delete("one")
    assert set(desk.kept.presets) == {"two"}
    placement = desk.catalog.find("two")
    assert (placement.model, placement.card.name, placement.card.digest) == ("smol", "two", "ab" * 32)


async def test_a_copy_onto_itself_changes_nothing(desk: Desk) -> None:
    await desk.copy("smol", "SMOL")
    await desk.copy("smol", "one")
    await desk.copy("one", "one")
    assert set(desk.kept.presets) == {"one"}


@pytest.mark.parametrize("name", ["smol", "TINY", "Smol:latest", "library/far"])
async def test_what_the_configuration_names_is_never_replaced(desk: Desk, name: str) -> None:
    with pytest.raises(Forbidden, match="stands in the configuration"):
        await desk.create(name, "smol", system="Hm.")
    with pytest.raises(Forbidden, match="stands in the configuration"):
        await desk.delete(name)
    assert not desk.file.exists()


async def test_a_made_model_is_made_anew_under_its_own_spelling(desk: Desk) -> None:
    await desk.create("Mario", system="You are Mario.")
    await desk.create("mario", system="You are Luigi.")
    assert {name: preset.system for name, preset in desk.kept.presets.items()} == {"Mario": "You are Luigi."}


async def test_a_context_of_its_own_makes_a_profile_bounded_by_the_training(desk: Desk) -> None:
    await desk.create("long", context=4096)
    await desk.create("longest", context=1_000_000)
    await desk.create("same", context=2048)
    contexts = {name: entry.context for name, entry in desk.kept.profiles.items()}
    assert contexts == {"long": 4096, "longest": 8192}
    long = desk.catalog.find("long").card
    assert (long.modified_at, long.preset) == (1_700_000_000.0, desk.kept.presets["long"])
    assert desk.kept.presets["long"].parent == desk.kept.presets["same"].parent == "smol"
    assert desk.catalog.find("long").model == "long" and desk.catalog.find("same").model == "smol"


async def test_a_model_made_anew_of_itself_keeps_its_profile(desk: Desk) -> None:
    await desk.create("long", context=4096, system="One.")
    await desk.create("long", "long", system="Two.")
    assert desk.kept.profiles["long"].context == 4096 and desk.kept.presets["long"].system == "Two."
    await desk.create("long", "long", context=1024)
    entry = desk.kept.profiles["long"]
    assert (entry.base, entry.context) == ("smol", 1024) and desk.kept.presets["long"].system == "Two."


async def test_a_profile_that_others_need_is_kept(desk: Desk) -> None:
    await desk.create("long", context=4096)
    await desk.copy("long", "other")
    with pytest.raises(Forbidden, match="other was made of long"):
        await desk.delete("long")
    with pytest.raises(Forbidden, match="other was made of long"):
        await desk.copy("far", "long")
    await desk.delete("other")
    await desk.delete("long")
    assert desk.kept == Library()


async def test_the_template_of_the_model_is_no_other_one(desk: Desk) -> None:
    await desk.create("same", template="{{ messages }}")
    with pytest.raises(BadRequest, match="template is not supported"):
        await desk.create("new", template="{{ .Prompt }}")


async def test_a_context_that_a_host_elsewhere_does_not_have_is_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path, chain=("elsewhere",))
    await desk.create("less", context=1024)
    assert desk.kept.profiles == {} and desk.catalog.find("less").model == "smol"
    with pytest.raises(BadRequest, match="more than the 2048"):
        await desk.create("more", context=4096)
    with pytest.raises(Forbidden, match="no engine runs in this process"):
        files = {"m.gguf": "sha256:" + "0" * 64}
        await desk.model_admin.create(
            CreateModel(origin=ORIGIN, model="m", preset=Preset(model=""), files=files), desk.tell
        )


async def test_nobody_knows_what_is_not_there(desk: Desk) -> None:
    for order in (desk.pull("x"), desk.copy("x", "y"), desk.create("y", "x"), desk.delete("x")):
        with pytest.raises(ModelNotFound):
            await order


async def test_a_file_that_cannot_be_written_is_told_without_its_path(desk: Desk) -> None:
    desk.file.mkdir()
    with pytest.raises(GatewayError) as raised:
        await desk.copy("smol", "one")
    assert str(desk.file) not in raised.value.message and "log tells why" in raised.value.message


async def test_what_hands_have_written_stays(desk: Desk) -> None:
    desk.file.write_text(
        '# mine\npresets:\n  # about it\n  by-hand:\n    model: smol  # why\n    system: "costs $$5"\nprofiles: {}\n'
    )
    await desk.refresh()
    await desk.create("two", "by-hand", parameters={"stop": ("a", "b")})
    text = desk.file.read_text()
    assert all(words in text for words in ("# mine", "# about it", "# why", "costs $$5"))
    assert desk.kept.presets["two"].system == "costs $5"


async def test_many_at_once_all_come_to_be(desk: Desk) -> None:
    async with anyio.create_task_group() as clients:
        for number in range(8):
            clients.start_soon(desk.copy, "smol", f"m{number}")
    assert set(desk.kept.presets) == {f"m{number}" for number in range(8)}


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
async def test_only_a_whole_model_becomes_one(tmp_path: Path, content: bytes, words: str) -> None:
    desk, store = Desk(tmp_path), BlobStore(tmp_path / "blobs", 1000)
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    upload = store.begin(digest)
    upload.write(content)
    upload.keep()
    order = CreateModel(origin=ORIGIN, model="m", preset=Preset(model=""), files={"m.gguf": digest})
    with pytest.raises(BadRequest, match=words) as raised:
        await desk.model_admin.create(order, desk.tell)
    assert str(tmp_path) not in raised.value.message and not desk.file.exists()
    two = CreateModel(origin=ORIGIN, model="m", preset=Preset(model=""), files={"a": digest, "b": digest})
    with pytest.raises(BadRequest, match="one GGUF file makes a model"):
        await desk.model_admin.create(two, desk.tell)
