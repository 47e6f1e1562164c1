"""The folder of the Unix sockets between the main process and its workers."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FOLDER: Final = "hostler-workers-"
#: A Unix socket's path has 104 characters at most on some systems; those here end in `/supervisor`.
_MAX_FOLDER: Final = 80


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of this start alone, for Unix sockets, which is removed at the end. Those of killed processes are, too."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) + len(_FOLDER) + 10 > _MAX_FOLDER:
        base = Path("/tmp")
    for left in base.glob(f"{_FOLDER}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether no process listens in a folder that is this user's."""
    try:
        if folder.stat().st_uid != os.getuid():
            return False
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(folder / "main"))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
