"""Has this machine use the profiles that its cluster shares, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from hostler.gateway.config import ConfigError, Configuration
from hostler.gateway.config_reload import Reloader
from hostler.gateway.preflight import engine_mistakes, profile_mistakes
from hostler.gateway.shared_files import Refused, write_shared


class SharedProfilesFile:
    """`file` is read by `reloader` with the configuration file, whose own profiles win."""

    def __init__(self, file: Path, reloader: Reloader) -> None:
        self._file = file
        self._reloader = reloader

    async def apply(self, text: str) -> str:
        """See `shared_files.Apply`: either all of the profiles for this host are used, or none."""
        try:
            found = await self._reloader.preview({self._file.absolute(): text})
        except ConfigError as error:
            raise Refused("; ".join(error.mistakes)) from error
        if mistakes := found.shared.left_out or await anyio.to_thread.run_sync(_mistakes, found):
            raise Refused("; ".join(mistakes))
        await anyio.to_thread.run_sync(write_shared, self._file, text)
        await self._reloader.reload()
        if self._reloader.configuration.shared.text != text:
            raise Refused("the configuration could not be loaded with them; the log of this member says why")
        own = found.shared.overridden
        return f"its own file has {', '.join(own)}" if own else ""


def _mistakes(configuration: Configuration) -> tuple[str, ...]:
    """What keeps shared profiles from running here. Blocks."""
    shared = set(configuration.shared.names)
    found = [message for name, message in engine_mistakes(configuration).items() if name in shared]
    for profile in configuration.profiles:
        if profile.name in shared:
            found += profile_mistakes(profile, needs_gguf=False)
    return tuple(dict.fromkeys(found))
