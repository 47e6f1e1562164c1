"""Applies saved changes of the configuration file, its manifest and the library while running. An invalid file changes
nothing."""

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

#: Editors write a file in several steps: changes within this time count as one, in milliseconds.
_DEBOUNCE_MS = 300

#: The polling interval, in milliseconds.
_POLL_MS = 2000

ApplyProfiles = Callable[[Sequence[Profile]], Awaitable[None]]


class Reloader:
    """Reads the configuration again when it changes, and passes changed profiles to `apply` and changed presets to
    `on_presets`.

    Changes of other sections take effect at the next start; they are logged.
    """

    def __init__(
        self,
        configuration: Configuration,
        apply: ApplyProfiles,
        environ: Mapping[str, str],
        *,
        on_presets: Callable[[Mapping[str, Preset]], None] = lambda _: None,
    ) -> None:
        self._configuration = configuration
        self._apply = apply
        self._environ = environ
        self._on_presets = on_presets
        self._lock = anyio.Lock()
        self._stamps = _stamps(self._files())

    async def run(self) -> None:
        """Watch until cancelled. Returns at once if there is no file to watch."""
        files = self._files()
        if not files:
            return
        try:
            await self._watch(files)
        except (OSError, RuntimeError) as error:
            # The system is out of watches or file handles: that ends the watching, but not the gateway.
            logger.warning("file watching unavailable (%s); polling every %g s", error, _POLL_MS / 1000)
        while True:
            await anyio.sleep(_POLL_MS / 1000)
            await self._poll(files)

    async def _watch(self, files: set[Path]) -> None:
        from watchfiles import awatch

        folders = {each.parent for each in files if each.parent.is_dir()}
        if not folders:
            return

        def is_configuration(_change: object, changed: str) -> bool:
            # The folder may contain other files, such as Hostler's own log.
            return Path(changed) in files

        # The files are polled as well: changes saved before the watching began are not reported.
        async for changes in awatch(
            *folders,
            watch_filter=is_configuration,
            step=_DEBOUNCE_MS,
            recursive=False,
            rust_timeout=_POLL_MS,
            yield_on_timeout=True,
        ):
            await self._poll(files, changed=bool(changes))

    async def _poll(self, files: set[Path], *, changed: bool = False) -> None:
        before, self._stamps = self._stamps, _stamps(files)
        if changed or before != self._stamps:
            await self.reload()

    async def reload(self) -> bool:
        """Read the files again and apply what changed. Returns whether that succeeded."""
        async with self._lock:
            return await self._reload()

    async def _reload(self) -> bool:
        try:
            fresh = read(self._configuration.path, self._environ)
        except ConfigError as error:
            logger.error("%s; the previous configuration stays in effect", error)
            return False
        old = self._configuration
        self._log_other_changes(old.settings, fresh.settings)
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
                logger.exception("applying the profiles failed; retrying with the next change")
                return False
        if fresh.presets != old.presets:
            self._on_presets(fresh.presets)
        self._configuration = fresh
        return True

    def _files(self) -> set[Path]:
        """The files to watch, as named and as their links resolve: most editors replace a file rather than write it."""
        path, manifest = self._configuration.path, self._configuration.settings.manifest
        files = [file for file in (path, self._configuration.library) if file is not None]
        if path is not None and manifest is not None:
            files.append(path.parent / Path(manifest).expanduser())
        return {each for file in files for each in (file.absolute(), file.resolve())}

    def _log_other_changes(self, old: Settings, new: Settings) -> None:
        for section in old.__struct_fields__:
            if section in ("profiles", "manifest"):
                continue
            if getattr(old, section) != getattr(new, section):
                logger.warning("%s: changed; takes effect at the next start", section)


def _stamps(files: Iterable[Path]) -> set[tuple[Path, int, int]]:
    """Path, modification time and size of each file that exists."""
    found = set()
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        found.add((file, state.st_mtime_ns, state.st_size))
    return found
