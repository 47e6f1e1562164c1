"""Where a member of a cluster keeps the configuration that all share, and how it says that it cannot use it."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.cluster_view import ConfigurationKind
from hostler.gateway.state_files import state_file
from hostler.profiles.file_reading import FileTooLarge, read_limited
from hostler.supervisor.state_store import replace_file

#: Bytes of what is shared of a kind, at most.
MAX_BYTES = 512 * 1024

_ENDINGS: Mapping[ConfigurationKind, str] = {"profiles": "-profiles.yaml", "keys": "-keys"}


class Refused(Exception):
    """A member cannot use what is shared; the message says why, and what to do."""


#: Uses a text from now on. Returns a note for operators, perhaps empty. Raises `Refused`, and then nothing has changed.
Apply = Callable[[str], Awaitable[str]]


def shared_file(
    cluster: ClusterSettings | None, kind: ConfigurationKind, state: Callable[[str], Path] = state_file
) -> Path | None:
    """The file with what is shared of a kind; `None` for a member that does not take it."""
    if cluster is None or kind not in cluster.accept or not (cluster.token or cluster.token_file):
        return None
    return state(f"cluster-{cluster.name}{_ENDINGS[kind]}")


def host_names(cluster: ClusterSettings) -> tuple[str, ...]:
    """What patterns of hosts are compared with."""
    if cluster.member is not None:
        return (cluster.member,)
    name = socket.gethostname()
    return tuple(dict.fromkeys((name, name.partition(".")[0])))


def write_shared(file: Path, text: str) -> None:
    """Replace the file, unless it has the text already. Blocks. Raises `Refused`."""
    content = text.encode()
    try:
        if read_limited(file, MAX_BYTES) == content:
            return
    except (OSError, FileTooLarge):
        pass
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(file, content, sync=True)
    except OSError as error:
        raise Refused(f"{file}: cannot be written: {error.strerror or error}") from error


def one_line(text: str) -> str:
    """A reason as members report it."""
    return re.sub(r"\s+", " ", text).strip()[:500]
