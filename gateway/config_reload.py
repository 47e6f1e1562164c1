"""Saved changes of the configuration file, its manifest and the library, taken over while running. A broken file changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

import anyio
import msgspec

from hostler.gateway.config import ConfigError, Configuration, Settings, read
from hostler.profiles.presets import Preset
from hostler.profiles.schema import Profile
from hostler.profiles.store import diff

logger = logging.getLogger(__name__)

#: Editors write a file in several steps; what comes within this time is one change, in milliseconds.
_TOGETHER_MS = 300

#: How often files are looked at without being told of a change, in milliseconds.
_LOOK_MS = 2000

Apply = Callable[[Sequence[Profile]], Awaitable[None]]


class Reloader:
    """Reads the configuration again when it changes, and hands changed profiles to `apply`.

    Other sections take effect at the next start: their change is logged, so that nobody waits for it.
    """

    def __init__(
        self,
        configuration: Configuration,
        apply: Apply,
        environ: Mapping[str, str],
        *,
        made: Callable[[Mapping[str, Preset]], None] = lambda _: None,
    ) -> None:
        self._configuration = configuration
        self._apply = apply
        self._environ = environ
        self._made = made
        self._turn = anyio.Lock()
        self._seen = _stamps(self._files())

    async def run(self) -> None:
        """Watch until cancelled. Returns at once when there is no file to watch."""
        files = self._files()
        if not files:
            return
        try:
            await self._watch(files)
        except (OSError, RuntimeError) as error:
            # The system's table of watchers is full, or its files are: both end a watcher, and neither a gateway.
            logger.warning("nobody tells of saved changes (%s); files are looked at every %g s", error, _LOOK_MS / 1000)
        while True:
            await anyio.sleep(_LOOK_MS / 1000)
            await self._look(files)

    async def _watch(self, files: set[Path]) -> None:
        from watchfiles import awatch

        folders = {each.parent for each in files if each.parent.is_dir()}
        if not folders:
            return

        def ours(_change: object, changed: str) -> bool:
            # A folder may hold anything, our own log among it.
            return Path(changed) in files

        # Now and then the files are looked at anyway: nobody tells of what was saved before the watching began.
        async for told in awatch(
            *folders,
            watch_filter=ours,
            step=_TOGETHER_MS,
            recursive=False,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
        ):
            await self._look(files, told=bool(told))

    async def _look(self, files: set[Path], *, told: bool = False) -> None:
        before, self._seen = self._seen, _stamps(files)
        if told or before != self._seen:
            await self.reload()

    async def reload(self) -> bool:
        """Read the files again and apply what changed. Returns whether it is in force now."""
        async with self._turn:
            return await self._reload()

    async def _reload(self) -> bool:
        try:
            fresh = read(self._configuration.path, self._environ)
        except ConfigError as error:
            logger.error("%s; what was configured before stays in force", error)
            return False
        old = self._configuration
        self._tell_of_other_changes(old.settings, fresh.settings)
        changes = diff(old.profiles, fresh.profiles)
        if changes:
            logger.info(
                "profiles changed: %s",
                "; ".join(
                    f"{what} {', '.join(names)}" for what, names in msgspec.structs.asdict(changes).items() if names
                ),
            )
            try:
                await self._apply(fresh.profiles)
            except Exception:
                logger.exception("profiles could not be changed; they are tried again with the next change")
                return False
        if fresh.presets != old.presets:
            self._made(fresh.presets)
        self._configuration = fresh
        return True

    def _files(self) -> set[Path]:
        """The files that count, as named and as their links point: most editors replace a file rather than write it."""
        path, manifest = self._configuration.path, self._configuration.settings.manifest
        files = [file for file in (path, self._configuration.library) if file is not None]
        if path is not None and manifest is not None:
            files.append(path.parent / Path(manifest).expanduser())
        return {each for file in files for each in (file.absolute(), file.resolve())}

    def _tell_of_other_changes(self, old: Settings, new: Settings) -> None:
        for section in old.__struct_fields__:
            if section in ("profiles", "manifest"):
                continue
            if getattr(old, section) != getattr(new, section):
                logger.warning("%s: changed; this takes effect at the next start", section)


def _stamps(files: Iterable[Path]) -> set[tuple[Path, int, int]]:
    """What changes when one of the files does."""
    found = set()
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        found.add((file, state.st_mtime_ns, state.st_size))
    return found
