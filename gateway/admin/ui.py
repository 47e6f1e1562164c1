"""The page for people: its files, the frame that they are put into, and the way in and out for those with a key."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import BadRequest, GatewayError, UnsupportedMediaType
from hostler.gateway.admin.http import json_response, plain, sent
from hostler.gateway.admin.status import StatusView
from hostler.gateway.asgi import CLIENT_KEY, RouteMatch
from hostler.gateway.auth.sessions import LASTS_S, Sessions, cookie_name, session_cookie
from hostler.gateway.context import Client
from hostler.gateway.routing import gateway_route

FOLDER = Path(__file__).parent / "static"

_LONGEST_FORM = 4096

#: The page loads its own files and talks to its own gateway; everything else is not allowed, nor may others frame it.
_RULES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a login by a program; people send a form."""

    key: str


class Page:
    """Answers `/ui/`. `sessions` is `None` where no keys are needed, so nobody has to log in.

    `refused` counts a wrong key of an address and raises when there were too many.
    """

    def __init__(
        self,
        view: Callable[[], StatusView],
        sessions: Sessions | None,
        refused: Callable[[str], GatewayError],
        folder: Path = FOLDER,
    ) -> None:
        self._view = view
        self._sessions = sessions
        self._refused = refused
        self._files = {
            path.name: _File(path.read_bytes(), path.suffix)
            for path in sorted(folder.iterdir())
            if path.suffix in _MEDIA_TYPES
        }

    def claims(self) -> list[RouteMatch]:
        """The page, its files, and the way in and out."""
        claims = [gateway_route(name, f"/ui/{name}", plain(self._file), scope="read") for name in self._files]
        claims += [gateway_route("page", path, plain(self._page), scope="read") for path in ("/ui/", "/ui")]
        if self._sessions is not None:
            claims += [
                gateway_route("login", "/ui/login", plain(self._login), scope="open", methods=("POST",)),
                gateway_route("logout", "/ui/logout", plain(self._logout), scope="read", methods=("POST",)),
            ]
        return claims

    async def _file(self, request: Request) -> Response:
        file = self._files[request.url.path.rpartition("/")[2]]
        # Asked for again each time, so that nobody sees the page of an older version; unchanged, it is not sent again.
        headers = {**_HEADERS, "ETag": file.tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=_MEDIA_TYPES[file.suffix], headers=headers)

    async def _page(self, request: Request) -> Response:
        if not request.url.path.endswith("/"):
            return RedirectResponse("/ui/", status_code=307)
        client: Client = request.scope[CLIENT_KEY]
        headers = {**_HEADERS, "Content-Security-Policy": _RULES, "Cache-Control": "no-store", "Vary": "Cookie"}
        text = _frame(self._view(), client, logged_in=self._sessions is not None)
        return Response(text, media_type="text/html", headers=headers)

    async def _login(self, request: Request) -> Response:
        assert self._sessions is not None, "this route is claimed with sessions only"
        by_form, key = await _presented(request)
        begun = self._sessions.begin(key)
        address = request.client.host if request.client else "unknown"
        if begun is None:
            error = self._refused(address)
            return _wire(door(error.message)) if by_form else _wire(_told(error))
        token, client = begun
        if not client.scopes & {"read", "operate"}:
            self._sessions.end(token)
            words = "this key may use models, but not look; make one with the scope read: `hostler keys add NAME`"
            told = json_response({"error": {"message": words, "code": "forbidden"}}, status=403)
            return _wire(door(words, status=403)) if by_form else told
        response = RedirectResponse("/ui/", status_code=303) if by_form else json_response({"name": client.name})
        self._set_cookie(response, request, token, LASTS_S)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _logout(self, request: Request) -> Response:
        assert self._sessions is not None, "this route is claimed with sessions only"
        await _presented(request, wanted=False)
        name = cookie_name(_port(request))
        token = session_cookie(name, {"cookie": request.headers.getlist("cookie")})
        if token is not None:
            self._sessions.end(token)
        response = RedirectResponse("/ui/", status_code=303)
        self._set_cookie(response, request, "", 0.0)
        return response

    def _set_cookie(self, response: Response, request: Request, token: str, lasts_s: float) -> None:
        response.set_cookie(
            cookie_name(_port(request)),
            token,
            max_age=round(lasts_s),
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.headers.get("origin", "").startswith("https://"),
        )


class _File(msgspec.Struct, frozen=True):
    data: bytes
    suffix: str

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'


async def _presented(request: Request, *, wanted: bool = True) -> tuple[bool, str]:
    """Whether a form was sent rather than JSON, and the key in it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", "application/json", "" if not wanted else "-"):
        raise UnsupportedMediaType("send this as a form or with Content-Type: application/json")
    content = await sent(request, most=_LONGEST_FORM)
    if not wanted:
        return True, ""
    if kind == "application/json":
        try:
            return False, msgspec.json.decode(content, type=Login).key
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"send a JSON object with key: {error}") from error
    return True, parse_qs(content.decode("utf-8", "replace")).get("key", [""])[0].strip()


def login_form(method: str, path: str, accept: str) -> WireResponse | None:
    """The login form, if a browser asks for the page rather than a program for data."""
    return door() if method == "GET" and path in ("/", "/ui", "/ui/") and "text/html" in accept else None


def door(problem: str = "", *, status: int = 401) -> WireResponse:
    """The form that asks for a key. It needs nothing but itself, since nothing else is given out without a key."""
    told = f'<p id="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    described = ' aria-describedby="problem" aria-invalid="true"' if problem else ""
    text = _DOOR.replace("{told}", told).replace("{described}", described).replace("{style}", _DOOR_STYLE)
    rules = (
        f"default-src 'none'; style-src 'sha256-{_DOOR_HASH}'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    return WireResponse(
        status=status,
        media_type="text/html; charset=utf-8",
        headers=(
            *_HEADERS.items(),
            ("Content-Security-Policy", rules),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept, Cookie"),
            *((("WWW-Authenticate", "Bearer"),) if status == 401 else ()),
        ),
        body=text.encode(),
    )


def _told(error: GatewayError) -> WireResponse:
    body = msgspec.json.encode({"error": {"message": error.message, "code": error.code}})
    return WireResponse(status=error.status, headers=(("WWW-Authenticate", "Bearer"),), body=body)


def _wire(answer: WireResponse) -> Response:
    return Response(answer.body, status_code=answer.status, media_type=answer.media_type, headers=dict(answer.headers))


def _port(request: Request) -> int:
    server = request.scope.get("server")
    return int(server[1]) if server and server[1] else 0


def _frame(status: StatusView, client: Client, *, logged_in: bool) -> str:
    """The page before its scripts run, and what those see who have none. Everything from outside is escaped."""
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
        ("host", "supervisor", "serving", "waiting"),
        [
            (view.backend, "reachable" if view.reachable else "silent", str(view.serving), str(view.waiting))
            for view in status.hosts
        ],
    )
    leave = '<form method="post" action="/ui/logout"><button class="quiet">Log out</button></form>' if logged_in else ""
    scopes = " ".join(sorted(client.scopes))
    recording = _RECORDING if status.recording else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Hostler</title>
<link rel="icon" href="/ui/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/ui/style.css">
<script type="module" src="/ui/app.js"></script></head>
<body data-scopes="{_text(scopes)}" data-name="{_text(client.name)}">
<a class="skip" href="#main">Skip to content</a>
<header><img class="mark" src="/ui/icon.svg" alt=""><h1>Hostler <small>{_text(status.version)}</small></h1>
<p id="link" role="status"></p><button id="theme" class="quiet" type="button" hidden>Theme</button>{leave}{recording}</header>
<nav id="nav" aria-label="Sections"></nav>
<main id="main" tabindex="-1"><noscript>
<p>Live views need JavaScript. This is how things were when the page was loaded.</p>
{models}{hosts}</noscript></main></body></html>"""


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As the scripts make them (`table` in `ui/dom.js`): roles are said, since narrow ones are not laid out as tables."""
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


#: Whoever opens the page, and whatever section, sees it.
_RECORDING = (
    '<p class="recording" role="note"><strong>Recording:</strong> prompts and answers are recorded '
    "(<code>gateway.recording.contents</code>).</p>"
)


def _text(value: str) -> str:
    return html.escape(value, quote=True)


_DOOR_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: light-dark(#f5f6f8, #14171c); color: light-dark(#1b1f24, #e8eaed); }
main { width: min(22rem, calc(100vw - 2rem)); box-sizing: border-box; padding: 1.5rem; border-radius: 0.75rem; background: light-dark(#fff, #1d2127); border: 1px solid light-dark(#d5d9df, #343a43); }
h1 { margin: 0 0 0.5rem; font-size: 1.4rem; }
label { display: block; font-weight: 600; margin: 1rem 0 0.25rem; }
input, button { font: inherit; width: 100%; box-sizing: border-box; padding: 0.6rem; border-radius: 0.4rem; min-height: 2.75rem; }
input { border: 1px solid light-dark(#76808d, #8b95a3); background: light-dark(#fff, #14171c); color: inherit; }
button { margin-top: 1rem; border: 0; background: light-dark(#0b5cad, #8cc2ff); color: light-dark(#fff, #06213d); font-weight: 600; cursor: pointer; }
:focus-visible { outline: 3px solid light-dark(#0b5cad, #8cc2ff); outline-offset: 2px; }
[role=alert] { color: light-dark(#a8071a, #ff9c9c); }
p { margin: 0.5rem 0 0; }
"""
_DOOR_HASH = base64.b64encode(hashlib.sha256(_DOOR_STYLE.encode()).digest()).decode()
_DOOR = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in · Hostler</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><h1>Hostler</h1><p>Log in with an API key that may read or operate.</p>{told}
<form method="post" action="/ui/login"><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus spellcheck="false"{described}>
<button>Log in</button></form></main></body></html>"""
