"""A shell that waits for our end, however we end, and then kills the groups of all engines that still run.

An engine itself is killed by the system when we die, where the system can; what it has started is not.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from functools import cache
from typing import Final

logger = logging.getLogger(__name__)

#: Its input ends when we do. Whoever asks us to end says so to all of a service: it outlives that, as we do for a while.
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
    """Knows which process groups are ours. `pid` is the shell's, once there is one.

    It is nobody's child, so that nobody has to wait for it.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self._groups: set[int] = set()
        self._pipe: int | None = None
        self._missed = False

    def watch(self, group: int) -> None:
        """Have this group killed when we die. Where there is no shell, nothing happens."""
        self._groups.add(group)
        if not self._tell(f"watch {group}\n"):
            # It was killed, or has not been started.
            self._start()
            for each in self._groups:
                self._tell(f"watch {each}\n")

    def forget(self, group: int) -> None:
        """This group has gone: from now on the number may be somebody else's."""
        if group in self._groups:
            self._groups.remove(group)
            self._tell(f"forget {group}\n")

    def close(self) -> None:
        """As if we had died: what is watched now is killed."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _tell(self, line: str) -> bool:
        if self._pipe is None:
            return False
        try:
            os.write(self._pipe, line.encode())
        except BlockingIOError:  # it does not read: stopped by somebody
            return True
        except OSError:
            return False
        return True

    def _start(self) -> None:
        self.close()
        shell = shutil.which("sh", path=os.defpath) or shutil.which("sh")
        if shell is None:
            self._miss("there is no sh")
            return
        reading, writing = os.pipe()
        try:
            said = subprocess.run(
                [shell, "-c", _SCRIPT], stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
                env={}, start_new_session=True, timeout=2, check=True,
            )  # fmt: skip
            self.pid = int(said.stdout)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            os.close(writing)
            self._miss(f"sh cannot be run: {error}")
            return
        finally:
            os.close(reading)
        os.set_blocking(writing, False)
        self._pipe = writing

    def _miss(self, why: str) -> None:
        """Tell once what is missing: engines run all the same."""
        if not self._missed:
            self._missed = True
            logger.warning("%s; what an engine has started may outlive a supervisor that is killed", why)


@cache
def process_reaper() -> Reaper:
    """The one of this process."""
    return Reaper()
