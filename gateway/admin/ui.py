"""The dashboard at `/ui/`: its files, and the HTML they are loaded into."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hostler.gateway.admin.http import json_endpoint, page_url
from hostler.gateway.admin.login import SECURITY_HEADERS
from hostler.gateway.admin.status import StatusView
from hostler.gateway.asgi import CLIENT_KEY, RouteMatch
from hostler.gateway.context import Client
from hostler.gateway.routing import gateway_route

STATIC = Path(__file__).parent / "static"

#: The page loads its own files and calls its own gateway, and cannot be framed; nothing else is allowed.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class UI:
    """`view` returns the current status; with `logins` the page has a button to log out."""

    def __init__(self, view: Callable[[], StatusView], *, logins: bool) -> None:
        self._view = view
        self._logins = logins
        self._files = {
            path.name: _File(path.read_bytes(), path.suffix)
            for path in sorted(STATIC.iterdir())
            if path.suffix in _MEDIA_TYPES
        }

    def routes(self) -> list[RouteMatch]:
        files = [gateway_route(name, f"/ui/{name}", json_endpoint(self._file), scope="read") for name in self._files]
        return files + [
            gateway_route("page", path, json_endpoint(self._page), scope="read") for path in ("/ui/", "/ui")
        ]

    async def _file(self, request: Request) -> Response:
        file = self._files[request.url.path.rpartition("/")[2]]
        # Revalidated on every load, so that an upgrade shows at once.
        headers = {**SECURITY_HEADERS, "ETag": file.tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=_MEDIA_TYPES[file.suffix], headers=headers)

    async def _page(self, request: Request) -> Response:
        if not request.url.path.endswith("/"):
            return RedirectResponse(page_url(request), status_code=307)
        client: Client = request.scope[CLIENT_KEY]
        headers = {
            **SECURITY_HEADERS,
            "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
            "Cache-Control": "no-store",
            "Vary": "Cookie",
        }
        text = _document(self._view(), client, logged_in=self._logins)
        return Response(text, media_type="text/html", headers=headers)


class _File(msgspec.Struct, frozen=True):
    data: bytes
    suffix: str

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'


def _document(status: StatusView, client: Client, *, logged_in: bool) -> str:
    """The page before its scripts run, and with JavaScript off. Everything from outside is escaped."""
    models = _table(
        "Models",
        ("model", "state", "context", "aliases", "note"),
        [
            (card.name, card.state, f"{card.context:,}", ", ".join(card.aliases), card.failure or card.description)
            for card in status.models
        ],
    )
    hosts = _table(
        "Hosts",
        ("host", "supervisor", "in progress", "waiting"),
        [
            (view.backend, "reachable" if view.reachable else "unreachable", str(view.serving), str(view.waiting))
            for view in status.hosts
        ],
    )
    logout = '<form method="post" action="logout"><button class="quiet">Log out</button></form>' if logged_in else ""
    scopes = " ".join(sorted(client.scopes))
    keys = " data-keys" if logged_in and "operate" in client.scopes else ""
    recording = _RECORDING if status.recording else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Hostler</title>
<link rel="icon" href="icon.svg" type="image/svg+xml"><link rel="stylesheet" href="style.css">
<script type="module" src="app.js"></script></head>
<body data-scopes="{_text(scopes)}" data-name="{_text(client.name)}"{keys}>
<a class="skip" href="#main">Skip to content</a>
<header><img class="mark" src="icon.svg" alt=""><h1>Hostler <small>{_text(status.version)}</small></h1>
<p id="link" role="status"></p><button id="theme" class="quiet" type="button" hidden>Theme</button>{logout}{recording}</header>
<nav id="nav" aria-label="Sections"></nav>
<main id="main" tabindex="-1"><noscript>
<p>Live views need JavaScript. This is the state at the time the page was loaded.</p>
{models}{hosts}</noscript></main></body></html>"""


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The markup of `table` in `static/dom.js`. Roles are explicit: on narrow screens it is not laid out as a table."""
    heads = "".join(f"<th scope='col' role='columnheader'>{column}</th>" for column in columns)
    body = "".join(
        f"<tr role='row'><th scope='row' role='rowheader'>{_text(first)}</th>"
        + "".join(
            f"<td role='cell' data-label='{column}'>{_text(value) or '–'}</td>"
            for column, value in zip(columns[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f"<h2>{title}</h2><div class='scroll' tabindex='0' role='region' aria-label='{title}'><table role='table'>"
        f"<thead role='rowgroup'><tr role='row'>{heads}</tr></thead><tbody role='rowgroup'>{body}</tbody></table></div>"
    )


#: Shown in every section.
_RECORDING = (
    '<p class="recording" role="note"><strong>Recording:</strong> prompts and answers are recorded '
    "(<code>gateway.recording.contents</code>).</p>"
)


def _text(value: str) -> str:
    return html.escape(value, quote=True)
