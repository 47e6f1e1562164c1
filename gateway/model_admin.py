"""Carries out what clients ask about which models there are: fetch one, name it anew, make one of another, forget it.

Whoever asks is known by now to be allowed to. What is made is kept in the library's file.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from hostler.adapters.errors import BadRequest, Forbidden, GatewayError, ModelUnavailable
from hostler.adapters.model_names import folded
from hostler.adapters.types import CopyModel, CreateModel, DeleteModel, ProgressStep, PullModel
from hostler.gateway.catalog import Catalog, Placement
from hostler.gateway.config import LOCAL, LibrarySettings
from hostler.profiles import library
from hostler.profiles.blobs import BlobStore
from hostler.profiles.gguf import read_facts
from hostler.profiles.gguf_header import GGUFError
from hostler.profiles.presets import Preset, made_from
from hostler.profiles.schema import ModelFacts, ProfileEntry
from hostler.profiles.sources import FetchProgress
from hostler.profiles.yaml_config import DocumentError
from hostler.supervisor.contract import SupervisorError, SupervisorUnreachable, SupportsPulling, UnknownProfile

logger = logging.getLogger(__name__)

#: So long a made model may take to be served, in seconds: its file is read, and engines that have to go end.
_IN_FORCE_S = 60.0
#: Without a word about it, an uploaded model runs with at most this context.
_CONTEXT = 4096

ReportStep = Callable[[ProgressStep], Awaitable[None]]
Refresh = Callable[[], Awaitable[object]]


class ModelAdmin:
    """Keeps the promises of the arranging layer.

    `file` is the library's, `refresh` has it read again and taken over. `engines`: whether this process runs any itself,
    so that profiles can be added.
    """

    def __init__(
        self,
        rules: LibrarySettings,
        file: Path | None,
        *,
        catalog: Catalog,
        supervisors: Mapping[str, object],
        blobs: BlobStore,
        refresh: Refresh,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._file = file
        self._catalog = catalog
        self._supervisors = supervisors
        self._engines = LOCAL in supervisors
        self._blobs = blobs
        self._refresh = refresh
        self._wall = wall
        self._turn = anyio.Lock()

    def here(self, model: str) -> bool:
        """Whether there is nothing to fetch: its file is known, or nobody here has one."""
        card = self._catalog.listing.resolve(model)
        return card is None or card.size > 0 or not self._fetching(self._catalog.find(card.name))

    async def has_file(self, digest: str) -> bool:
        """Whether a file of this checksum was uploaded."""
        return await anyio.to_thread.run_sync(self._blobs.path, digest) is not None

    async def pull(self, order: PullModel, tell: ReportStep) -> None:
        """Have the model's file on the first of its hosts that answers."""
        await tell(ProgressStep(step="looking"))
        placement = self._catalog.find(order.model)
        card = placement.card
        digest = _digest(card.digest, card.name)
        size = card.size
        hosts = [] if size else self._fetching(placement)
        for name, supervisor in hosts:
            try:
                size = await _Fetching(supervisor, placement.model, digest, tell).run()
                break
            except SupervisorUnreachable as error:
                if name == hosts[-1][0]:
                    raise ModelUnavailable(
                        f"{placement.model} could not be fetched: {name} does not answer", model=order.model
                    ) from error
            except (SupervisorError, UnknownProfile) as error:
                # The supervisor's words name files and folders: they are for its log.
                logger.warning("%s could not be fetched on %s: %s", placement.model, name, error)
                raise ModelUnavailable(
                    f"{placement.model} could not be fetched on {name}; its log tells why", model=order.model
                ) from error
        size = max(size, 1)
        await tell(ProgressStep(step="fetching", digest=digest, completed=size, total=size))
        await tell(ProgressStep(step="verifying"))
        await tell(ProgressStep(step="writing"))
        await tell(ProgressStep(step="done"))

    async def copy(self, order: CopyModel) -> None:
        """A second name for what the model is now."""
        source = self._catalog.find(order.model)
        if folded(order.destination) == folded(source.card.name):
            return
        self._may_change()
        preset = msgspec.structs.replace(
            made_from(Preset(model=source.model), source.preset),
            model=source.model,
            parent=source.preset.parent if source.preset is not None else "",
            made_at=round(self._wall(), 3),
        )
        await self._keep(self._name_for(order.destination), preset, None)

    async def create(self, order: CreateModel, tell: ReportStep) -> None:
        """A model of another one, or of an uploaded file."""
        if not order.preset.model and not order.files:
            raise BadRequest("neither 'from' or 'files' was specified")
        self._may_change()
        profile: ProfileEntry | None
        if order.preset.model:
            preset, profile, digest = await self._of_model(order, tell)
        else:
            preset, profile, digest = await self._of_file(order, tell)
        name = self._name_for(order.model)
        preset = msgspec.structs.replace(
            preset, model=name if profile is not None else preset.model, made_at=round(self._wall(), 3)
        )
        await tell(ProgressStep(step="reusing", digest=digest))
        if preset.speaks or preset.license:
            said = hashlib.sha256(msgspec.json.encode(preset)).hexdigest()
            await tell(ProgressStep(step="adding", digest=said))
        await tell(ProgressStep(step="writing"))
        await self._keep(name, preset, profile)
        await tell(ProgressStep(step="done"))

    async def delete(self, order: DeleteModel) -> None:
        """Forget a model that a client made, and its file if it was uploaded and nobody else needs it."""
        card = self._catalog.find(order.model).card
        if not self._rules.delete:
            raise Forbidden(
                "deleting models is not allowed here: gateway.library.delete in the configuration allows it"
            )
        async with self._turn:
            kept = await self._kept()
            if card.name not in kept:
                raise Forbidden(f"{card.name} is not a model that a client made: it stands in the configuration")
            self._free_of_others(card.name, kept)
            await self._write(partial(library.drop, self._file_there(), card.name))
            await self._in_force(lambda: self._catalog.listing.index.get(card.name) is None, card.name)
            entry = kept.profiles.get(card.name)
            if entry is not None:
                await self._remove_file(entry, kept, card.name)

    # How a model is made.

    async def _of_model(self, order: CreateModel, tell: ReportStep) -> tuple[Preset, ProfileEntry | None, str]:
        asked = order.preset.model
        if self._catalog.listing.resolve(asked) is None:
            await tell(ProgressStep(step="looking"))
        source = self._catalog.find(asked)
        card = source.card
        facts = card.facts or ModelFacts()
        _check_template(order.template, facts)
        preset = made_from(msgspec.structs.replace(order.preset, model=source.model), source.preset)
        preset = msgspec.structs.replace(preset, model=source.model, parent=card.name)
        profile: ProfileEntry | None = None
        context = order.context
        if context is not None and facts.training_context:
            context = min(context, facts.training_context)
        if context is not None and context != card.context:
            if self._local(source):
                profile = ProfileEntry(base=source.model, context=context)
            elif context > card.context:
                raise BadRequest(
                    f"num_ctx {context} is more than the {card.context} that {card.name} runs with on its own machine; "
                    "add a profile there"
                )
        return preset, profile, _digest(card.digest, card.name)

    async def _of_file(self, order: CreateModel, tell: ReportStep) -> tuple[Preset, ProfileEntry, str]:
        if not self._engines:
            raise Forbidden("no engine runs in this process: models of files are added on the machine that has one")
        digest = _only(order.files, "one GGUF file makes a model here: parts, projectors and safetensors are not taken")
        await tell(ProgressStep(step="parsing"))
        path, facts = await self._uploaded(digest)
        _check_template(order.template, facts)
        if facts.metadata.get("general.type", "model") != "model":
            raise BadRequest(
                "supplied file is a part of a model, which needs a profile in the configuration", param="files"
            )
        context = order.context or _CONTEXT
        if facts.training_context:
            context = min(context, facts.training_context)
        embeds = "embedding" in facts.capabilities
        profile = ProfileEntry(model=str(path), context=context, embeddings=embeds or msgspec.UNSET)
        return order.preset, profile, digest.partition(":")[2] or digest[-64:]

    async def _uploaded(self, digest: str) -> tuple[Path, ModelFacts]:
        """An uploaded GGUF file and what it says of itself."""
        path = await anyio.to_thread.run_sync(self._blobs.path, digest)
        if path is None:
            raise BadRequest(f'blob "{digest[:100]}" not found: upload it first', param="files")
        try:
            return path, await anyio.to_thread.run_sync(read_facts, path)
        except GGUFError as error:
            logger.warning("an uploaded file cannot be used: %s", error)
            words = "supplied file was not in GGUF format" if error.kind == "not_gguf" else "supplied file is damaged"
            raise BadRequest(words, param="files") from error

    # What is kept.

    def _may_change(self) -> None:
        if not self._rules.change:
            raise Forbidden("making models is not allowed here: gateway.library.change in the configuration allows it")

    def _name_for(self, wanted: str) -> str:
        """The name to keep a model under: as it is spelled already if there is one, else as it was wished."""
        card = self._catalog.listing.resolve(wanted)
        if card is None:
            return wanted
        if card.preset is None:
            raise Forbidden(f"{card.name} stands in the configuration: a model that is made needs another name")
        return card.name

    async def _keep(self, name: str, preset: Preset, profile: ProfileEntry | None) -> None:
        async with self._turn:
            kept = await self._kept()
            profile = _own(name, preset, profile, kept)
            if profile is None:
                self._free_of_others(name, kept)
            await self._write(partial(library.put, self._file_there(), name, preset=preset, profile=profile))

            def served() -> bool:
                card = self._catalog.listing.index.get(name)
                fits = profile is None or profile.context in (msgspec.UNSET, card.context if card else None)
                return card is not None and card.preset == preset and fits

            await self._in_force(served, name)

    async def _kept(self) -> library.Library:
        try:
            return (await anyio.to_thread.run_sync(library.read_library, self._file_there()))[0]
        except DocumentError as error:
            raise _unwritten(error) from error

    async def _write(self, change: Callable[[], None]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(change)
        except (DocumentError, OSError) as error:
            raise _unwritten(error) from error

    async def _in_force(self, condition: Callable[[], bool], name: str) -> None:
        """Have the file taken over, and wait until it is. Shielded: what is written is in force, whoever leaves."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_IN_FORCE_S) as waited:
            await self._refresh()
            await self._catalog.until(lambda _: condition())
        if waited.cancelled_caught:
            raise GatewayError(f"{name} is written down, but could not be taken over; the gateway's log tells why")

    def _file_there(self) -> Path:
        if self._file is None:
            raise Forbidden("models that clients make cannot be kept: name a file in gateway.library.file")
        return self._file

    def _free_of_others(self, name: str, kept: library.Library) -> None:
        """Raises `Forbidden` if something else was made of this model's own profile."""
        others = {other for other, preset in kept.presets.items() if preset.model == name != other}
        others |= {other for other, entry in kept.profiles.items() if entry.base == name}
        if name in kept.profiles and others:
            raise Forbidden(f"{', '.join(sorted(others))} was made of {name} and needs it")

    async def _remove_file(self, entry: ProfileEntry, kept: library.Library, name: str) -> None:
        named = [str(entry.model), *(entry.args or ())]
        needed = [
            text
            for other, each in kept.profiles.items()
            if other != name
            for text in (str(each.model), *(each.args or ()))
        ]
        for text in named:
            digest = Path(text).name
            if text not in needed and self._blobs.path(digest) == Path(text):
                await anyio.to_thread.run_sync(self._blobs.remove, digest)

    # Where models are.

    def _local(self, placement: Placement) -> bool:
        return self._engines and any(place.backend == LOCAL for place in placement.places)

    def _fetching(self, placement: Placement) -> list[tuple[str, SupportsPulling]]:
        """The hosts that could fetch the model's file, in the order of the chain."""
        named = ((place.backend, self._supervisors.get(place.backend)) for place in placement.places)
        return [(name, each) for name, each in named if isinstance(each, SupportsPulling)]


class _Fetching:
    """One pull, told as it goes: the newest of what there is to tell, however slowly a client reads."""

    def __init__(self, supervisor: SupportsPulling, model: str, digest: str, tell: ReportStep) -> None:
        self._supervisor = supervisor
        self._model = model
        self._digest = digest
        self._tell = tell
        self._news = anyio.Event()
        self._last: FetchProgress | None = None

    async def run(self) -> int:
        """Fetch; returns the size in bytes as far as it is known. Raises what `SupportsPulling.pull` does."""
        failed: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._say)
            try:
                await self._supervisor.pull(self._model, report=self._hear)
            except Exception as error:  # taken out of the group by hand, so that it comes out as itself
                failed = error
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return (self._last.total or self._last.completed) if self._last is not None else 0

    def _hear(self, progress: FetchProgress) -> None:
        self._last = progress
        self._news.set()

    async def _say(self) -> None:
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            said = self._last
            if said is None or said.phase in ("waiting", "done"):
                continue
            # A wheel, what is in it and each part of a file are files of their own to whoever draws a bar for each.
            of_this = hashlib.sha256(f"{self._digest}/{said.file}/{said.phase}".encode()).hexdigest()
            await self._tell(ProgressStep(step="fetching", digest=of_this, completed=said.completed, total=said.total))


def _own(name: str, preset: Preset, profile: ProfileEntry | None, kept: library.Library) -> ProfileEntry | None:
    """The profile of a model that may have been made of what is kept under its own name, which must not be lost."""
    before = kept.profiles.get(name)
    if before is None:
        return profile
    if profile is None:
        return before if preset.model == name else None
    if profile.base != name:
        return profile
    new = {key: value for key in profile.__struct_fields__ if (value := getattr(profile, key)) is not msgspec.UNSET}
    return msgspec.structs.replace(before, **{key: value for key, value in new.items() if key != "base"})


def _digest(digest: str, name: str) -> str:
    return digest or hashlib.sha256(name.encode()).hexdigest()


def _only(files: Mapping[str, str], otherwise: str) -> str:
    if len(files) != 1:
        raise BadRequest(otherwise, param="files")
    return next(iter(files.values()))


def _check_template(wanted: str, facts: ModelFacts) -> None:
    """Engines write conversations by the template in the model's file: any other one would be ignored."""
    own = facts.chat_template or "{{ .Prompt }}"
    if wanted.strip() not in ("", own.strip()):
        raise BadRequest("template is not supported: the model's own template is used", param="template")


def _unwritten(error: Exception) -> GatewayError:
    logger.error("the library could not be changed: %s", error)
    return GatewayError("the file of models that clients made could not be changed; the gateway's log tells why")
