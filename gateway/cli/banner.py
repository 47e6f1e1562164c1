"""The banner printed when the gateway listens: its addresses, and lines to paste into a shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hostler import __version__
from hostler.profiles.schema import Profile

#: The addresses at which this machine reaches a gateway that listens everywhere.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}

#: Models named in the banner, at most; `hostler models` lists all.
_MAX_NAMES: Final = 6

#: Where models come from, while there are none.
_NONE: Final = "none yet; add a profile, or a file to a folder of profiles.scan"


def banner(
    models: Sequence[str],
    default: str,
    addresses: Sequence[tuple[str, int]],
    *,
    keys_required: bool,
    hostname: str,
    secure: bool = False,
    alone: bool = False,
) -> str:
    """The text for a gateway that listens at `addresses`, on a machine that others know as `hostname`. `secure`: with TLS;
    `alone`: without backends that may have models."""
    scheme = "https" if secure else "http"
    local = list(dict.fromkeys(local_url(*address, secure=secure) for address in addresses))
    remote = list(dict.fromkeys(f"{scheme}://{hostname}:{port}" for host, port in addresses if host in _LOOPBACK))
    url = next((each for each in local if not each.startswith("unix:")), f"{scheme}://localhost")
    socket = f" --unix-socket {addresses[0][0]}" if url not in local else ""
    lines = [
        f"Hostler {__version__} listens on {' and '.join(local)}",
        *([f"  network    {' and '.join(remote)}"] if remote else []),
        f"  models     {_first(models) or (_NONE if alone else 'those of its backends')}",
        *(["  API keys   required; `hostler keys add NAME` creates one"] if keys_required else []),
        "",
        # Broken so that no line is longer than 80 columns.
        f"  curl{socket} {url}/v1/chat/completions \\",
        "    -H 'Content-Type: application/json' \\",
        *(["    -H 'Authorization: Bearer KEY' \\"] if keys_required else []),
        f'    -d \'{{"model": "{default}", "stream": true,',
        '         "messages": [{"role": "user", "content": "Hello!"}]}\'',
        "",
        *(
            [f"  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={'KEY' if keys_required else 'unused'}"]
            if url in local
            else []
        ),
        *([f"  export OLLAMA_HOST={url}"] if url in local else []),
        f"  dashboard  {url}/ui/",
        "",
        "  Press Ctrl-C to stop.",
    ]
    return "\n".join(lines)


def example_model(profiles: Sequence[Profile], others: Sequence[str]) -> str:
    """The model of the banner's example, a chat: the default one, else the first that can chat, else the first of `others`."""
    able = [each for each in profiles if not each.embeddings and _can_chat(each)]
    chosen = next((each for each in able if each.default), None) or next(iter(able), None)
    return chosen.name if chosen is not None else next(iter(others), "NAME")


def _can_chat(profile: Profile) -> bool:
    engine = profile.definition
    return engine is None or not engine.serves or "chat" in engine.serves


def _first(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names) if more < 2 else f"{', '.join(names[:_MAX_NAMES])} and {more} more"


def local_url(host: str, port: int, *, secure: bool = False) -> str:
    """The URL at which this machine reaches a gateway that listens there; `unix:PATH` for a Unix socket."""
    if host.startswith("/"):
        return f"unix:{host}"
    return f"{'https' if secure else 'http'}://{format_address(_LOOPBACK.get(host, host), port)}"


def format_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address; `unix:PATH` for a Unix socket."""
    if host.startswith("/"):
        return f"unix:{host}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
