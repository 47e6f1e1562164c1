"""Model administration by clients: pull, copy, create and delete. Created models are kept in the library file.

Authorisation happens in `middleware/model_admin.py`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.to_thread
import msgspec

from hostler.adapters.canonical import CopyModel, CreateModel, DeleteModel, ProgressStep, PullModel, ReportStep
from hostler.adapters.errors import BadRequest, Forbidden, GatewayError, ModelUnavailable
from hostler.adapters.model_names import normalized
from hostler.gateway.gateway_settings import LibrarySettings
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.model_pull import ModelPull, pull_in_thread
from hostler.gateway.placements import Placement
from hostler.gateway.settings import LOCAL
from hostler.profiles import library
from hostler.profiles.blobs import BlobStore
from hostler.profiles.downloads import Cancellation
from hostler.profiles.gguf import read_facts
from hostler.profiles.gguf_header import GGUFError
from hostler.profiles.hub_reference import is_registry_name
from hostler.profiles.presets import Preset, inherit_preset, is_model_name
from hostler.profiles.schema import ModelFacts, ProfileEntry
from hostler.profiles.sources import ReportProgress, SourceError
from hostler.profiles.yaml_config import DocumentError
from hostler.supervisor.contract import SupervisorError, SupervisorUnreachable, SupportsPulling, UnknownProfile

logger = logging.getLogger(__name__)

#: How long a change may take to apply, in seconds: the file is read, and engines may have to stop.
_APPLY_S = 60.0
#: The context of an uploaded model, unless the client sets one.
_DEFAULT_CONTEXT = 4096

Refresh = Callable[[], Awaitable[object]]

GetModel = Callable[[str, ReportProgress, Cancellation], tuple[ProfileEntry, Preset | None]]
"""Downloads a model of a registry by its name, and returns how it runs. Blocks; raises `SourceError`."""


class ModelAdmin:
    """Implements `ModelOperations`. `file` is the library; `refresh` reads it again and applies it.

    `get_from_registry` gets new models. Profiles can be added only if this process runs a supervisor of its own.
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
        get_from_registry: GetModel = lambda *_: _no_registry(),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._file = file
        self._catalog = catalog
        self._supervisors = supervisors
        self._has_supervisor = LOCAL in supervisors
        self._blobs = blobs
        self._refresh = refresh
        self._get_from_registry = get_from_registry
        self._wall = wall
        self._lock = anyio.Lock()

    def is_present(self, model: str) -> bool:
        """Whether a pull would fetch nothing: the file is there, or the model has none."""
        card = self._catalog.listing.resolve(model)
        if card is None:
            return not self._is_new(model)
        return card.size > 0 or not self._pull_hosts(self._catalog.find(card.name))

    async def has_file(self, digest: str) -> bool:
        """Whether a file with this digest was uploaded."""
        return await anyio.to_thread.run_sync(self._blobs.path, digest) is not None

    def downloads(self, model: str) -> bool:
        """Whether the model is known, and one of the hosts here can fetch its file."""
        card = self._catalog.listing.resolve(model)
        return card is not None and bool(self._pull_hosts(self._catalog.find(card.name)))

    def gets_new(self) -> bool:
        """Whether models are fetched from registries that are not known here."""
        return self._has_supervisor and self._rules.change

    async def pull(self, operation: PullModel, report: ReportStep) -> None:
        """Fetch the model, and report each step."""
        await report(ProgressStep(step="looking"))
        card = self._catalog.listing.resolve(operation.model)
        digest = _digest("", operation.model) if card is None else _digest(card.digest, card.name)
        pull = ModelPull(digest, report)
        await pull.run(partial(self.fetch, operation.model))
        await _report_end(report, digest, pull.size if card is None else card.size or pull.size)

    async def fetch(self, model: str, report: ReportProgress) -> None:
        """Fetch the model's file on the first reachable of its hosts; that of an unknown model from its registry."""
        if self._is_new(model):
            await self._get_new(model, report)
            return
        placement = self._catalog.find(model)
        hosts = [] if placement.card.size else self._pull_hosts(placement)
        for name, supervisor in hosts:
            try:
                await supervisor.pull(placement.model, report=report)
                return
            except SupervisorUnreachable as error:
                if name == hosts[-1][0]:
                    raise ModelUnavailable(
                        f"{placement.model} could not be fetched: {name} is unreachable", model=model
                    ) from error
            except (SupervisorError, UnknownProfile) as error:
                # The supervisor's message names files and folders: for the log only.
                logger.warning("%s: fetching on %s failed: %s", placement.model, name, error)
                raise ModelUnavailable(
                    f"{placement.model} could not be fetched on {name}; see its log", model=model
                ) from error

    def _is_new(self, model: str) -> bool:
        """Whether this is an unknown model that its registry has, as far as the name says."""
        return self._catalog.listing.resolve(model) is None and is_registry_name(model)

    async def _get_new(self, name: str, report: ReportProgress) -> None:
        """Get a model from its registry, and add its profile."""
        self.check_new(name)
        try:
            entry, preset = await pull_in_thread(partial(self._get_from_registry, name), report)
        except SourceError as error:
            logger.warning("%s: fetching failed: %s", name, error)
            # What to do with files is for operators of this machine.
            raise ModelUnavailable(str(error).partition(". Put ")[0], model=name) from error
        await self.add(name, entry, preset)

    def check_new(self, name: str) -> None:
        """Raises `Forbidden` if no profile of this name can be added here, `BadRequest` if it is no name; empty: of any."""
        self._require_change_allowed()
        if not self._has_supervisor:
            raise Forbidden("this gateway runs no engines: get models on a host that does")
        self._library_file()
        if name and not is_model_name(name):
            raise BadRequest(
                "`name` must be letters, digits and . _ - with at most two /, and perhaps a :tag", param="name"
            )
        if (card := self._catalog.listing.resolve(name)) is not None:
            raise Forbidden(f"there is a model {card.name} already: choose another name")

    async def add(self, name: str, entry: ProfileEntry, preset: Preset | None) -> None:
        """Add the profile of a downloaded model."""
        self.check_new(name)
        own = msgspec.structs.replace(preset or Preset(model=name), model=name, created_at=round(self._wall(), 3))
        if entry.aliases is not msgspec.UNSET and entry.aliases is not None:
            # The same model may be here under another name.
            free = tuple(alias for alias in entry.aliases if self._catalog.listing.resolve(alias) is None)
            entry = msgspec.structs.replace(entry, aliases=free or msgspec.UNSET)
        await self._store(name, own, entry)

    async def copy(self, operation: CopyModel) -> None:
        """Add a second name for the model as it is now."""
        source = self._catalog.find(operation.model)
        if normalized(operation.destination) == normalized(source.card.name):
            return
        self._require_change_allowed()
        preset = msgspec.structs.replace(
            inherit_preset(Preset(model=source.model), source.preset),
            model=source.model,
            parent=source.preset.parent if source.preset is not None else "",
            created_at=round(self._wall(), 3),
        )
        await self._store(self._resolve_name(operation.destination), preset, None)

    async def create(self, operation: CreateModel, report: ReportStep) -> None:
        """Create a model from another one, or from an uploaded file."""
        if not operation.preset.model and not operation.files:
            raise BadRequest("neither 'from' or 'files' was specified")
        self._require_change_allowed()
        profile: ProfileEntry | None
        if operation.preset.model:
            preset, profile, digest = await self._from_model(operation, report)
        else:
            preset, profile, digest = await self._from_file(operation, report)
        name = self._resolve_name(operation.model)
        preset = msgspec.structs.replace(
            preset, model=name if profile is not None else preset.model, created_at=round(self._wall(), 3)
        )
        await report(ProgressStep(step="reusing", digest=digest))
        if preset.changes_requests or preset.license:
            settings = hashlib.sha256(msgspec.json.encode(preset)).hexdigest()
            await report(ProgressStep(step="adding", digest=settings))
        await report(ProgressStep(step="writing"))
        await self._store(name, preset, profile)
        await report(ProgressStep(step="done"))

    async def delete(self, operation: DeleteModel) -> None:
        """Delete a model that a client created, and its uploaded file if no other model uses it."""
        card = self._catalog.find(operation.model).card
        if not self._rules.delete:
            raise Forbidden("deleting models is disabled; gateway.library.delete in the configuration enables it")
        async with self._lock:
            stored = await self._read()
            if card.name not in stored:
                raise Forbidden(f"{card.name} was not created by a client: it is part of the configuration")
            self._require_unused(card.name, stored)
            await self._write(partial(library.delete_model, self._library_file(), card.name))
            await self._apply(lambda: self._catalog.listing.index.get(card.name) is None, card.name)
            entry = stored.profiles.get(card.name)
            if entry is not None:
                await self._remove_file(entry, stored, card.name)

    # Creating.

    async def _from_model(self, operation: CreateModel, report: ReportStep) -> tuple[Preset, ProfileEntry | None, str]:
        base = operation.preset.model
        if self._catalog.listing.resolve(base) is None:
            await report(ProgressStep(step="looking"))
        source = self._catalog.find(base)
        card = source.card
        facts = card.facts or ModelFacts()
        _check_template(operation.template, facts)
        preset = inherit_preset(msgspec.structs.replace(operation.preset, model=source.model), source.preset)
        preset = msgspec.structs.replace(preset, model=source.model, parent=card.name)
        profile: ProfileEntry | None = None
        context = operation.context
        if context is not None and facts.training_context:
            context = min(context, facts.training_context)
        if context is not None and context != card.context:
            if self._local(source):
                profile = ProfileEntry(base=source.model, context=context)
            elif context > card.context:
                raise BadRequest(
                    f"num_ctx {context} exceeds the context of {card.name} on its host, {card.context}; add a profile there"
                )
        return preset, profile, _digest(card.digest, card.name)

    async def _from_file(self, operation: CreateModel, report: ReportStep) -> tuple[Preset, ProfileEntry, str]:
        if not self._has_supervisor:
            raise Forbidden("this gateway runs no engines: create models from files on a host that does")
        digest = _single(operation.files, "exactly one GGUF file is supported: no parts, projectors or safetensors")
        await report(ProgressStep(step="parsing"))
        path, facts = await self._uploaded(digest)
        _check_template(operation.template, facts)
        if facts.metadata.get("general.type", "model") != "model":
            raise BadRequest(
                "supplied file is a part of a model, which needs a profile in the configuration", param="files"
            )
        context = operation.context or _DEFAULT_CONTEXT
        if facts.training_context:
            context = min(context, facts.training_context)
        embeds = "embedding" in facts.capabilities
        profile = ProfileEntry(model=str(path), context=context, embeddings=embeds or msgspec.UNSET)
        return operation.preset, profile, digest.partition(":")[2] or digest[-64:]

    async def _uploaded(self, digest: str) -> tuple[Path, ModelFacts]:
        """An uploaded GGUF file and its metadata."""
        path = await anyio.to_thread.run_sync(self._blobs.path, digest)
        if path is None:
            raise BadRequest(f'blob "{digest[:100]}" not found: upload it first', param="files")
        try:
            return path, await anyio.to_thread.run_sync(read_facts, path)
        except GGUFError as error:
            logger.warning("uploaded file rejected: %s", error)
            message = "supplied file was not in GGUF format" if error.kind == "not_gguf" else "supplied file is damaged"
            raise BadRequest(message, param="files") from error

    # The library.

    def _require_change_allowed(self) -> None:
        if not self._rules.change:
            raise Forbidden("creating models is disabled; gateway.library.change in the configuration enables it")

    def _resolve_name(self, wanted: str) -> str:
        """The name to store a model under: in the spelling it already has, or as requested."""
        card = self._catalog.listing.resolve(wanted)
        if card is None:
            return wanted
        if card.preset is None:
            raise Forbidden(f"{card.name} is part of the configuration: choose another name")
        return card.name

    async def _store(self, name: str, preset: Preset, profile: ProfileEntry | None) -> None:
        async with self._lock:
            stored = await self._read()
            profile = _merged_profile(name, preset, profile, stored)
            if profile is None:
                self._require_unused(name, stored)
            await self._write(partial(library.save_model, self._library_file(), name, preset=preset, profile=profile))

            def applied() -> bool:
                card = self._catalog.listing.index.get(name)
                fits = profile is None or profile.context in (msgspec.UNSET, card.context if card else None)
                return card is not None and card.preset == preset and fits

            await self._apply(applied, name)

    async def _read(self) -> library.Library:
        try:
            return (await anyio.to_thread.run_sync(library.read_library, self._library_file()))[0]
        except DocumentError as error:
            raise _write_error(error) from error

    async def _write(self, change: Callable[[], None]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(change)
        except (DocumentError, OSError) as error:
            raise _write_error(error) from error

    async def _apply(self, condition: Callable[[], bool], name: str) -> None:
        """Apply the file, and wait until it is in effect. Shielded: the client may disconnect."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_APPLY_S) as timeout:
            await self._refresh()
            await self._catalog.wait_until(lambda _: condition())
        if timeout.cancelled_caught:
            raise GatewayError(f"{name} is stored, but could not be applied; see the gateway's log")

    def _library_file(self) -> Path:
        if self._file is None:
            raise Forbidden("created models cannot be stored: set gateway.library.file")
        return self._file

    def _require_unused(self, name: str, stored: library.Library) -> None:
        """Raises `Forbidden` if another model was created from this one's profile."""
        others = {other for other, preset in stored.presets.items() if preset.model == name != other}
        others |= {other for other, entry in stored.profiles.items() if entry.base == name}
        if name in stored.profiles and others:
            raise Forbidden(f"{', '.join(sorted(others))} depends on {name}")

    async def _remove_file(self, entry: ProfileEntry, stored: library.Library, name: str) -> None:
        paths = [str(entry.model), *(entry.args or ())]
        in_use = [
            text
            for other, each in stored.profiles.items()
            if other != name
            for text in (str(each.model), *(each.args or ()))
        ]
        for text in paths:
            digest = Path(text).name
            if text not in in_use and self._blobs.path(digest) == Path(text):
                await anyio.to_thread.run_sync(self._blobs.remove, digest)

    # Hosts.

    def _local(self, placement: Placement) -> bool:
        return self._has_supervisor and any(place.backend == LOCAL for place in placement.places)

    def _pull_hosts(self, placement: Placement) -> list[tuple[str, SupportsPulling]]:
        """The hosts that can fetch the model's file, in the order of the chain."""
        named = ((place.backend, self._supervisors.get(place.backend)) for place in placement.places)
        return [(name, each) for name, each in named if isinstance(each, SupportsPulling)]


def _merged_profile(
    name: str, preset: Preset, profile: ProfileEntry | None, stored: library.Library
) -> ProfileEntry | None:
    """The profile to store: a model created from its own name keeps what its stored profile says."""
    current = stored.profiles.get(name)
    if current is None:
        return profile
    if profile is None:
        return current if preset.model == name else None
    if profile.base != name:
        return profile
    new = {key: value for key in profile.__struct_fields__ if (value := getattr(profile, key)) is not msgspec.UNSET}
    return msgspec.structs.replace(current, **{key: value for key, value in new.items() if key != "base"})


async def _report_end(report: ReportStep, digest: str, size: int) -> None:
    size = max(size, 1)
    await report(ProgressStep(step="fetching", digest=digest, completed=size, total=size))
    await report(ProgressStep(step="verifying"))
    await report(ProgressStep(step="writing"))
    await report(ProgressStep(step="done"))


def _no_registry() -> NoReturn:
    raise SourceError("this gateway gets no models from registries")


def _digest(digest: str, name: str) -> str:
    return digest or hashlib.sha256(name.encode()).hexdigest()


def _single(files: Mapping[str, str], message: str) -> str:
    if len(files) != 1:
        raise BadRequest(message, param="files")
    return next(iter(files.values()))


def _check_template(wanted: str, facts: ModelFacts) -> None:
    """Engines apply the chat template in the model's file; any other one would be ignored."""
    own = facts.chat_template or "{{ .Prompt }}"
    if wanted.strip() not in ("", own.strip()):
        raise BadRequest("template is not supported: the model's own template is used", param="template")


def _write_error(error: Exception) -> GatewayError:
    logger.error("cannot update the library: %s", error)
    return GatewayError("the library could not be updated; see the gateway's log")
