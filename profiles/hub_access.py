"""Where the Hugging Face Hub is, and the token for it, from the places that its own tools use."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hostler.profiles.file_reading import FileTooLarge, home_path, read_limited
from hostler.profiles.sources import SourceError

_MAX_TOKEN: Final = 4096


def hub_endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """The hub's address, or a mirror's: `HF_ENDPOINT`, else huggingface.co. Raises `SourceError` if that is no address."""
    address = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.match(r"https?://[^/\s]", address):
        raise SourceError("HF_ENDPOINT is not an address; write it like https://huggingface.co")
    return address


def hub_address() -> str:
    """The endpoint without credentials, for messages."""
    return re.sub(r"//[^/]*@", "//", hub_endpoint())


def hub_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the hub's tools keep what they know: `HF_HOME`, else `~/.cache/huggingface`."""
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return home_path(home)


def hub_credentials(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The header with the token: `HF_TOKEN`, else the one that `hf auth login` has stored. Empty without one.

    Raises `SourceError` for a token that cannot be sent; the message does not contain it.
    """
    token = (environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip()
    source = "HF_TOKEN"
    if not token:
        path = home_path(environ.get("HF_TOKEN_PATH") or hub_home(environ) / "token")
        source = str(path)
        try:
            token = read_limited(path, _MAX_TOKEN).decode("utf-8", "replace").strip()
        except (OSError, FileTooLarge):
            return {}
    if not (token.isascii() and token.isprintable()):
        raise SourceError(f"{source} contains characters that are not allowed in a token")
    return {"Authorization": f"Bearer {token}"} if token else {}
