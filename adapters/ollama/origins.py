"""Which web pages and apps Ollama lets call it from a browser without being told of them."""

from __future__ import annotations

import re

# Pages that this machine serves itself and apps that bring a browser along: no site on the web can claim to be one.
# Ollama takes `file://` as well; here it stays shut, since a page that was saved or sent is anybody's.
_WELCOME = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::[0-9]{1,5})?"
    r"|(?:app|tauri|vscode-webview|vscode-file)://[\x21-\x7e]{0,200}"
)


def welcome(origin: str) -> bool:
    """Whether pages of this origin may ask, as the header `Origin` names it."""
    return _WELCOME.fullmatch(origin) is not None
