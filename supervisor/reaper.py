"""A shell that outlives this process and then kills the process groups of all engines that still run.

On Linux the system kills an engine with its supervisor, but not what the engine has started.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from functools import cache
from typing import Final

logger = logging.getLogger(__name__)

#: Its stdin ends when this process does. It ignores the signals that a service manager sends to the whole service.
_SCRIPT: Final = """
trap '' HUP INT TERM
groups=
watch() {
    while read -r word group; do
        left=
        for each in $groups; do [ "$each" = "$group" ] || left="$left $each"; done
        groups=$left
        [ "$word" = forget ] || groups="$groups $group"
    done
    for each in $groups; do kill -KILL "-$each"; done
}
exec 3<&0
(exec <&3 >&2 3<&-; watch) &
echo $!
"""


class Reaper:
    """Kills the watched process groups when this process dies. `pid` is the shell's, once it runs.

    The shell is orphaned on purpose, so that it need not be waited for.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self._groups: set[int] = set()
        self._pipe: int | None = None
        self._warned = False

    def watch(self, group: int) -> None:
        """Kill this group when this process dies. Without a shell this does nothing."""
        self._groups.add(group)
        if not self._send(f"watch {group}\n"):
            # The shell was killed, or has not been started.
            self._start()
            for each in self._groups:
                self._send(f"watch {each}\n")

    def forget(self, group: int) -> None:
        """Stop watching a group that is gone: its number may be used again."""
        if group in self._groups:
            self._groups.remove(group)
            self._send(f"forget {group}\n")

    def close(self) -> None:
        """Kill the watched groups, as if this process had died."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _send(self, line: str) -> bool:
        if self._pipe is None:
            return False
        try:
            os.write(self._pipe, line.encode())
        except BlockingIOError:  # the shell is suspended
            return True
        except OSError:
            return False
        return True

    def _start(self) -> None:
        self.close()
        shell = shutil.which("sh", path=os.defpath) or shutil.which("sh")
        if shell is None:
            self._warn("sh not found")
            return
        reading, writing = os.pipe()
        try:
            shell_process = subprocess.run(
                [shell, "-c", _SCRIPT], stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
                env={}, start_new_session=True, timeout=2, check=True,
            )  # fmt: skip
            self.pid = int(shell_process.stdout)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            os.close(writing)
            self._warn(f"sh cannot be run: {error}")
            return
        finally:
            os.close(reading)
        os.set_blocking(writing, False)
        self._pipe = writing

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s; processes started by engines may survive if the supervisor is killed", reason)


@cache
def process_reaper() -> Reaper:
    """The reaper of this process."""
    return Reaper()
