"""Makes profiles of the models in folders: which there are, how they run here, and what changes while Hostler runs.

Blocks: callers on an event loop use a thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from hostler.gateway.events import printable
from hostler.profiles.gguf import GGUFError, read_facts, shard_paths
from hostler.profiles.model_scan import FoundModel, LeftOut, profile_names, scan_models
from hostler.profiles.schema import ModelFacts, ProfileEntry
from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.devices.discovery import DeviceReader
from hostler.supervisor.devices.reading import DeviceReading, by_name
from hostler.supervisor.engine_abilities import (
    EngineAbilities,
    EngineDevice,
    folder_engine,
    gguf_engine,
    read_abilities,
)
from hostler.supervisor.machine import available_memory
from hostler.supervisor.model_fit import ModelFit, Room, fit_folder, fit_model, room_of

logger = logging.getLogger(__name__)

#: Characters of a path in the log.
_MAX_SHOWN = 300
#: Why a folder of safetensors is left out.
_NO_ENGINE = "is a model for vllm, sglang or mlx-lm, none of which is installed"

#: The size, times and number of each file of a model; `None` for one that is missing.
_State = tuple[tuple[int, ...] | None, ...]


def read_gpus() -> Sequence[DeviceReading]:
    """The GPUs that drivers report."""
    reader = DeviceReader()
    try:
        return reader.read(())
    finally:
        reader.close()


class FoundProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A profile that was made of a found model."""

    name: str
    entry: ProfileEntry
    model: FoundModel
    fit: ModelFit


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and where it will run. `memory` is what this machine had free at the first look, in bytes.

    `unused_gpus` are the models of GPUs that the engine cannot use.
    """

    profiles: tuple[FoundProfile, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    engine: EngineAbilities | None = None
    memory: int = 0
    unused_gpus: tuple[str, ...] = ()


class ModelFinder:
    """Finds profiles (`store.FindModels`) for the folders of the configuration, and for the `places` of a command line.
    Safe from threads.

    What was chosen for a model stays until its files change. A model that appears counts once its files are whole and have
    not changed between two looks, except at the first one. While `is_loaded`, a model stays as it is, even if its files
    change or vanish. What loaded models hold of the GPUs (`held`, in bytes) counts as free: they are unloaded for others.
    """

    def __init__(
        self, places: Collection[Path] = (), *, memory: Callable[[], int] = available_memory,
        abilities: Callable[[str | None], EngineAbilities] = read_abilities,
        gpus: Callable[[], Sequence[DeviceReading]] = read_gpus,
        for_folders: Callable[[str | None], str | None] = folder_engine, held: Callable[[], int] = int,
    ) -> None:  # fmt: skip
        self._places = tuple(places)
        self._memory = memory
        self._abilities = abilities
        self._gpus = gpus
        self._folder_engine = for_folders
        self._held = held
        self._for_folders: str | None = None
        self.is_loaded: Callable[[str], bool] = lambda _: False
        self._lock = threading.Lock()
        self._folders: tuple[Path, ...] | None = None
        self._engine: str | None = None
        self._room: Room | None = None
        self._engine_abilities = EngineAbilities(program=())
        self._facts: dict[Path, tuple[_State, ModelFacts | GGUFError]] = {}
        self._seen: set[Path] = set()
        self._pending: dict[Path, _State] = {}
        self._known: dict[Path, tuple[_State, FoundProfile]] = {}
        self._names: dict[Path, str] = {}
        self._said: frozenset[LeftOut] = frozenset()
        self.findings = Findings()

    def __call__(self, folders: Sequence[Path], engine: str | None) -> Mapping[str, ProfileEntry] | None:
        """See `store.FindModels`. Never raises."""
        with self._lock:
            if not folders and not self._places:
                self._folders = None
                return None
            first = self._folders != (*folders, *self._places) or engine != self._engine
            self._folders, self._engine = (*folders, *self._places), engine
            self._look(self._folders, accept_new=first)
            if first:
                self._said = frozenset(self.findings.left_out)  # a table shows these
            return {each.name: each.entry for each in self.findings.profiles}

    @property
    def has_looked(self) -> bool:
        """Whether there were folders to look at."""
        return self._folders is not None

    def changed(self) -> bool:
        """Look again. Whether there are other models than when it was called last, for the same folders."""
        with self._lock:
            if self._folders is None:
                return False
            before = self.findings
            self._look(self._folders, accept_new=False)
            self._report(before.left_out)
            return self.findings.profiles != before.profiles

    def _report(self, before: Sequence[LeftOut]) -> None:
        """Log what is left out since a while; a file that is being written has another reason at each look."""
        lasting = frozenset(self.findings.left_out) & frozenset(before)
        for each in sorted(lasting - self._said, key=lambda found: found.path):
            logger.warning("left out: %s %s", printable(str(each.path), _MAX_SHOWN), each.reason)
        self._said = (self._said | lasting) & frozenset(self.findings.left_out)

    def _look(self, folders: Sequence[Path], *, accept_new: bool) -> None:
        room = self._room or self._measure()
        self._seen.clear()
        scan = scan_models(folders, read=self._read)
        left_out = list(scan.left_out)
        known: dict[Path, tuple[_State, FoundProfile]] = {}
        pending: dict[Path, _State] = {}
        fresh: list[tuple[FoundModel, _State]] = []
        for model in scan.models:
            if model.is_folder and self._for_folders is None:
                left_out.append(LeftOut(path=model.path, reason=_NO_ENGINE))
                continue
            state = _state(model.files)
            before = self._known.get(model.path)
            if before is not None and (before[0] == state or self.is_loaded(before[1].name)):
                known[model.path] = before
            elif accept_new or self._pending.get(model.path) == state:
                fresh.append((model, state))
            else:
                pending[model.path] = state
                if before is not None and _state(before[1].model.files) == before[0]:
                    known[model.path] = before  # another file is about to belong to it
                    continue
                left_out.append(LeftOut(path=model.path, reason="is new, and may still be being written"))
        for path, before in self._known.items():
            if path not in known and path not in pending and self.is_loaded(before[1].name):
                known[path] = before
        self._pending = pending
        self._facts = {path: self._facts[path] for path in self._seen}
        self._name([model.path for model, _ in fresh])
        for model, state in fresh:
            known[model.path] = (state, self._profile(self._names[model.path], model, room))
        self._known = dict(sorted(known.items()))
        self.findings = msgspec.structs.replace(
            self.findings, profiles=tuple(each for _, each in self._known.values()), left_out=tuple(left_out)
        )

    def room(self, engine: str | None) -> Room:
        """What models may take on this machine, as it was when it was asked for first."""
        self._engine = engine
        return self._room or self._measure()

    def profile(self, name: str, model: FoundModel) -> FoundProfile:
        """The profile of a model that is here, after `room`."""
        assert self._room is not None
        return self._profile(name, model, self._room)

    def _profile(self, name: str, model: FoundModel, room: Room) -> FoundProfile:
        if model.is_folder and self._for_folders is not None:
            fit = fit_folder(model.facts, room, self._for_folders)
            own = UNSET if self._for_folders == self._engine else self._for_folders
            entry = ProfileEntry(model=str(model.path), context=fit.context, parallel=fit.parallel, engine=own)
            return FoundProfile(name=name, entry=entry, model=model, fit=fit)
        found = _found_profile(name, model, room, self._engine_abilities)
        if gguf_engine(self._engine) == self._engine:
            return found
        # The default engine is of another kind.
        entry = msgspec.structs.replace(found.entry, engine=self._engine_abilities.name)
        return msgspec.structs.replace(found, entry=entry)

    def _measure(self) -> Room:
        try:
            engine = self._abilities(gguf_engine(self._engine))
        except (SupervisorError, ValueError):
            engine = EngineAbilities(program=())  # reported where engines are checked
        self._for_folders = self._folder_engine(self._engine)
        memory = self._memory()
        unused: tuple[str, ...] = ()
        if not engine.devices:
            readings = self._gpus()
            if engine.knows_devices or not engine.program:
                unused = tuple(each.model or each.id for each in readings)
            else:
                engine = msgspec.structs.replace(engine, devices=tuple(map(_as_device, by_name(readings).items())))
        engine = msgspec.structs.replace(engine, devices=_without_models(engine.devices, self._held()))
        self._engine_abilities = engine
        self._room = room_of(memory, [device.free for device in engine.devices], fits_layers=engine.fits)
        self.findings = Findings(engine=engine, memory=memory, unused_gpus=unused)
        return self._room

    def _name(self, paths: Sequence[Path]) -> None:
        """Name models; a model that had a name keeps it."""
        missing = [path for path in paths if path not in self._names]
        self._names |= profile_names(missing, self._names.values())

    def _read(self, path: Path) -> ModelFacts:
        """The facts of a model. Damaged files are not read again until they change."""
        try:
            state = _state(shard_paths(path))
        except GGUFError:
            state = ()
        self._seen.add(path)
        kept = self._facts.get(path)
        if kept is None or kept[0] != state:
            try:
                kept = (state, read_facts(path))
            except GGUFError as error:
                kept = (state, error)
            self._facts[path] = kept
        if isinstance(kept[1], GGUFError):
            raise kept[1]
        return kept[1]


def _as_device(named: tuple[str, DeviceReading]) -> EngineDevice:
    """A GPU that its driver reports, for an engine that lists none."""
    name, reading = named
    total = reading.total or 0
    return EngineDevice(name=name, model=reading.model, total=total, free=max(0, total - (reading.used or 0)))


def _without_models(devices: Sequence[EngineDevice], held: int) -> tuple[EngineDevice, ...]:
    """The devices as they are without the models that hold so many bytes of them together."""
    emptied = []
    for device in devices:
        more = min(max(0, device.total - device.free), held)
        held -= more
        emptied.append(msgspec.structs.replace(device, free=device.free + more))
    return tuple(emptied)


def _state(files: Sequence[Path]) -> _State:
    found: list[tuple[int, ...] | None] = []
    for file in files:
        try:
            status = file.stat()
            found.append((status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def _found_profile(name: str, model: FoundModel, room: Room, engine: EngineAbilities) -> FoundProfile:
    beside = [path for path in (model.projector, model.draft) if path is not None]
    embeddings = model.kind != "chat"
    fit = fit_model(model.facts, room, embeddings=embeddings, beside=sum(map(_size, beside)))
    args = list(fit.args)
    if model.draft is not None and (head := _head_kind(model.draft)) in engine.draft_heads:
        args += ["--spec-type", head]
    if model.kind == "rerank":
        args += ["--reranking"]
    entry = ProfileEntry(
        model=str(model.path),
        mmproj=UNSET if model.projector is None else str(model.projector),
        draft=UNSET if model.draft is None else str(model.draft),
        context=fit.context,
        parallel=fit.parallel if fit.parallel > 1 else UNSET,
        gpu_layers=UNSET if fit.gpu_layers is None else fit.gpu_layers,
        embeddings=True if embeddings else UNSET,
        args=tuple(args) if args else UNSET,
    )
    return FoundProfile(name=name, entry=entry, model=model, fit=fit)


def _head_kind(draft: Path) -> str:
    """How a draft guesses, as a value of `--spec-type`."""
    name = draft.name.lower()
    return "draft-mtp" if "mtp" in name else "draft-eagle3" if "eagle" in name else "draft-simple"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
