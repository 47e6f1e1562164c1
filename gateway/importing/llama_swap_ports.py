"""Ports in llama-swap's commands and addresses: as a variable, since the supervisor chooses them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

#: The port in a command of an engine.
PORT: Final = "${port}"
_OPTION: Final = re.compile(r"--?(?:listen-)?port(?:=(\d{2,5}))?")


def proxy_address(proxy: Any) -> tuple[str, str, str]:
    """Host, port and path of an address whose port may be a variable."""
    text = str(proxy).replace(PORT, "65535")
    try:
        url = urlsplit(text if "//" in text else f"//{text}")
        port = "" if url.port is None else str(url.port)
    except ValueError:
        return "?", "", ""
    path = url.path.rstrip("/")
    return url.hostname or "", PORT if PORT in str(proxy) else port, path if re.fullmatch(r"/[!-~]*", path) else ""


def port_option(words: Sequence[str]) -> str:
    """The number that a command passes on as its port; empty if there is none."""
    for word, following in zip(words, (*words[1:], ""), strict=True):
        if (match := _OPTION.fullmatch(word)) is not None:
            number = match[1] or following
            return number if re.fullmatch(r"\d{2,5}", number) else ""
    return ""


def with_variable(word: str, port: str) -> str:
    """The word with a variable where this port stands by itself, or before or after a colon or an equals sign."""
    return re.sub(rf"(?<![\w.]){re.escape(port)}(?![\w.])", lambda _: PORT, word)
