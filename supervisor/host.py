"""A host put together: a fleet with its files, its conversation caches and its memory, from settings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, cache_directory
from hostler.supervisor.files import ModelFiles
from hostler.supervisor.fleet import Fleet
from hostler.supervisor.keeper import SlotKeeper
from hostler.supervisor.settings import SupervisorSettings
from hostler.supervisor.slots import SlotStore


def open_host(
    profiles: Sequence[Profile],
    settings: SupervisorSettings,
    *,
    host: str = "127.0.0.1",
    place: str | None = None,
    report: Callable[[FetchProgress], None] = lambda _: None,
    environ: Mapping[str, str] = os.environ,
) -> Fleet:
    """The fleet of this machine; `Fleet.run` starts it. `host` is where engines listen unless the settings say so.
    `place` is where the host itself takes orders over HTTP, as `address:port`: what tells it from others of this machine.
    Without one it does not remember over a restart whose orders it took.

    Conversation caches, remembered load times and operators' pins are kept in the cache folder unless the settings name another one.
    Raises `OSError` if the folder cannot be made.
    """
    files = ModelFiles(report=report)
    state = cache_directory(environ)
    keeper = None
    if settings.slots_max > 0:
        folder = Path(settings.slots_dir).expanduser() if settings.slots_dir else state / "slots"
        settings = msgspec.structs.replace(settings, slots_dir=str(folder))
        store = SlotStore(
            folder,
            max_bytes=settings.slots_max,
            max_age_s=settings.slots_max_age_s,
            min_tokens=settings.slots_min_tokens,
        )
        # Before the first engine: it refuses to start with a folder that is not there.
        store.prepare()
        keeper = SlotKeeper(store, files.facts)
    else:
        settings = msgspec.structs.replace(settings, slots_dir=None)
    return Fleet(
        profiles,
        settings,
        host=host,
        prepare=files.prepare,
        describe=files.describe,
        keeper=keeper,
        load_times=state / "load-times.json",
        footprints=state / "footprints.json",
        pins=state / "pins.json",
        epochs=None if place is None else state / "epochs" / f"{re.sub(r'[^0-9A-Za-z.]+', '-', place)}.json",
    )
