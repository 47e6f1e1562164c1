"""Applies saved changes of the configuration file, its manifest and the library while running. An invalid file changes
nothing."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from hostler.gateway import last_good
from hostler.gateway.checked_config import FindMistakes
from hostler.gateway.config import ConfigError, Configuration, FileErrors, read
from hostler.gateway.last_good import Texts
from hostler.gateway.settings import Settings
from hostler.profiles.file_reading import FileTooLarge, read_limited, real_path
from hostler.profiles.presets import Preset
from hostler.profiles.schema import Profile
from hostler.profiles.store import MAX_FILE_BYTES, diff

if TYPE_CHECKING:  # only supervisors look for models
    from hostler.gateway.model_finder import ModelFinder

logger = logging.getLogger(__name__)

#: Editors write a file in several steps: a change counts once it is this old, in seconds, and after so many steps.
_STEP_S = 0.3
_MAX_STEPS = 10

#: The files are looked at this often, in seconds: not every change is reported, such as one behind a link.
_POLL_S = 2.0

ApplyProfiles = Callable[[Sequence[Profile]], Awaitable[None]]


class Reloader:
    """Reads the configuration again when it changes, and passes changed profiles to `apply` and changed presets to
    `on_presets`.

    Changes of other sections take effect at the next start; they are logged. What works is kept as the last good
    configuration. `finder` finds the models of folders, also those that appear later. `errors` is what is wrong with
    the files while they have mistakes, with which `find_mistakes` finds more of them.
    """

    def __init__(
        self,
        configuration: Configuration,
        apply: ApplyProfiles,
        environ: Mapping[str, str],
        *,
        on_presets: Callable[[Mapping[str, Preset]], None] = lambda _: None,
        find_mistakes: FindMistakes = lambda _: (),
        finder: ModelFinder | None = None,
    ) -> None:
        self.errors = configuration.errors
        self._configuration = configuration
        self._apply = apply
        self._environ = environ
        self._on_presets = on_presets
        self._find_mistakes = find_mistakes
        self._finder = finder
        self._lock = anyio.Lock()
        self._changed = anyio.Event()
        # A fallback was not read from the files as they are.
        self._seen: Texts = {} if configuration.errors is not None else configuration.texts

    async def run(self) -> None:
        """Watch until cancelled. Returns at once if there is no file to watch."""
        if not self._files():
            return
        await anyio.to_thread.run_sync(last_good.keep, self._configuration, self._environ)
        stopping = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, stopping)
            try:
                while True:
                    await self._poll()
                    with anyio.move_on_after(_POLL_S):
                        await self._changed.wait()
                    self._changed = anyio.Event()
            finally:
                # The thread that watches would be waited for, seconds long.
                stopping.set()

    async def _watch(self, stopping: anyio.Event) -> None:
        """Notice changes at once where the system reports them."""
        from watchfiles import awatch

        try:
            files = {each for file in self._files() for each in (file.absolute(), real_path(file))}
            folders = {each.parent for each in files if each.parent.is_dir()}
            if not folders:
                return
            # The folder may contain other files, such as Hostler's own log.
            async for _ in awatch(
                *folders,
                watch_filter=lambda _, changed: Path(changed) in files,
                stop_event=stopping,
                recursive=False,
            ):
                self._changed.set()
        except (OSError, RuntimeError) as error:
            # The system is out of watches or file handles: that ends the watching, but not the gateway.
            logger.warning("file watching unavailable (%s); polling every %g s", error, _POLL_S)

    async def _poll(self) -> None:
        try:
            now = await anyio.to_thread.run_sync(_contents, self._files())
            if all(self._seen.get(place, _UNSEEN) == text for place, text in now.items()):
                if self._finder is not None and await anyio.to_thread.run_sync(self._finder.changed):
                    await self.reload()
                return
            for _ in range(_MAX_STEPS):
                await anyio.sleep(_STEP_S)
                before, now = now, await anyio.to_thread.run_sync(_contents, self._files())
                if now == before:
                    break
        except OSError as error:
            logger.debug("the configuration cannot be looked at: %s", error)
            return
        await self.reload()

    @property
    def configuration(self) -> Configuration:
        """What is in effect."""
        return self._configuration

    async def preview(self, texts: Texts) -> Configuration:
        """What would be in effect if files had these contents, without models of folders. Raises `ConfigError`."""
        current = self._configuration
        return await anyio.to_thread.run_sync(
            lambda: read(current.path, self._environ, texts={**current.texts, **texts})
        )

    async def reload(self) -> bool:
        """Read the files again and apply what changed. Returns whether that succeeded."""
        async with self._lock:
            return await self._reload()

    async def _reload(self) -> bool:
        old = self._configuration
        self._seen = await anyio.to_thread.run_sync(_contents, self._files())
        try:
            fresh = await anyio.to_thread.run_sync(self._load, old.texts)
        except ConfigError as error:
            self._note(FileErrors(file=str(old.path), mistakes=error.mistakes, since=round(time.time(), 3)))
            return False
        self._note(fresh.errors)
        if fresh.errors is None:
            self._seen = fresh.texts
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
        await anyio.to_thread.run_sync(last_good.keep, fresh, self._environ)
        return fresh.errors is None

    def _load(self, kept: Texts) -> Configuration:
        overrides = self._configuration.overrides
        fresh = last_good.load(
            self._configuration.path,
            self._environ,
            find_mistakes=lambda found: self._find_mistakes(overrides.apply(found)),
            find_models=self._finder,
            kept=kept or None,
        )
        return overrides.apply(fresh)

    def _note(self, errors: FileErrors | None) -> None:
        """Log mistakes when they are new, and that they are gone."""
        before, self.errors = self.errors, errors
        if errors is None:
            if before is not None:
                logger.warning("%s: its mistakes are corrected", before.file)
        elif before is None or before.mistakes != errors.mistakes:
            for mistake in errors.mistakes:
                logger.error("%s; the previous configuration stays in effect", mistake)
        else:
            self.errors = before

    def _files(self) -> set[Path]:
        """The files that the configuration was read from, or will be."""
        path, library = self._configuration.path, self._configuration.library
        texts = {*self._configuration.texts, *self._seen}
        return {each.absolute() for each in (path, library, *texts) if each is not None}

    def _log_other_changes(self, old: Settings, new: Settings) -> None:
        for section in old.__struct_fields__:
            if section in ("profiles", "manifest"):  # `profiles.scan` included
                continue
            if getattr(old, section) != getattr(new, section):
                logger.warning("%s: changed; takes effect at the next start", section)


#: Equal to the content of no file.
_UNSEEN = "\0"


def _contents(files: Iterable[Path]) -> dict[Path, str | None]:
    """The content of each file, `None` for one that cannot be read. Blocks. Raises `OSError` without file handles."""
    found: dict[Path, str | None] = {}
    for file in files:
        try:
            found[file] = read_limited(file, MAX_FILE_BYTES).decode("utf-8", "replace")
        except FileTooLarge as error:
            found[file] = str(error)  # different from any other state of it
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            found[file] = None
    return found
