"""Web pages that run on this machine, by the `Origin` of their requests."""

from __future__ import annotations

import re

# Pages served by this machine and apps with an embedded browser: no website can claim to be one. These are the origins that
# Ollama allows by default, but for `file://`, since a saved page can come from anywhere.
_LOCAL_ORIGIN = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::[0-9]{1,5})?"
    r"|(?:app|tauri|vscode-webview|vscode-file)://[\x21-\x7e]{0,200}"
)


def is_local_origin(origin: str) -> bool:
    """Whether the page was served by this machine, or belongs to an app."""
    return _LOCAL_ORIGIN.fullmatch(origin) is not None
