"""Login to the dashboard with an API key, and logout: the form, the session cookie, and the same as JSON."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import BadRequest, Forbidden, GatewayError, UnsupportedMediaType
from hostler.gateway.admin.http import error_response, json_endpoint, json_response, page_url
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.auth.sessions import LASTS_S, Sessions, cookie_name, session_cookie
from hostler.gateway.request_body import read_body, without_mark
from hostler.gateway.routing import gateway_route

_MAX_FORM = 4096

#: Headers of all responses to browsers.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a login by a program; browsers send a form."""

    key: str


class LoginRoutes:
    """`sessions` is `None` where no keys are needed: there are no routes then.

    `refused(address)` counts a wrong key and returns the error to answer with.
    """

    def __init__(self, sessions: Sessions | None, refused: Callable[[str], GatewayError]) -> None:
        self._sessions = sessions
        self._refused = refused

    def routes(self) -> list[RouteMatch]:
        if self._sessions is None:
            return []
        return [
            gateway_route("login", "/ui/login", json_endpoint(self._login), scope="open", methods=("POST",)),
            gateway_route("logout", "/ui/logout", json_endpoint(self._logout), scope="read", methods=("POST",)),
        ]

    async def _login(self, request: Request) -> Response:
        assert self._sessions is not None, "there are no routes without sessions"
        from_form, key = await _key_of(request)
        session = self._sessions.begin(key)
        address = request.client.host if request.client else "unknown"
        if session is None:
            error = self._refused(address)
            if from_form:
                return _response(login_page(page_url(request), error.message))
            answer = error_response(error)
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        token, client = session
        if not client.scopes & {"read", "operate"}:
            self._sessions.end(token)
            forbidden = Forbidden("this key lacks the scope read; create one that has it: `hostler keys add NAME`")
            return (
                _response(login_page(page_url(request), forbidden.message, status=403))
                if from_form
                else error_response(forbidden)
            )
        await self._sessions.published()
        response = (
            RedirectResponse(page_url(request), status_code=303) if from_form else json_response({"name": client.name})
        )
        _set_cookie(response, request, token, LASTS_S)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _logout(self, request: Request) -> Response:
        assert self._sessions is not None, "there are no routes without sessions"
        await _key_of(request, required=False)
        name = cookie_name(_port(request))
        token = session_cookie(name, {"cookie": request.headers.getlist("cookie")})
        if token is not None:
            self._sessions.end(token)
            await self._sessions.published()
        response = RedirectResponse(page_url(request), status_code=303)
        _set_cookie(response, request, "", 0.0)
        return response


def _set_cookie(response: Response, request: Request, token: str, lasts_s: float) -> None:
    response.set_cookie(
        cookie_name(_port(request)),
        token,
        max_age=round(lasts_s),
        path=f"{request.scope.get('root_path', '')}/",
        httponly=True,
        samesite="strict",
        secure=request.headers.get("origin", "").startswith("https://"),
    )


async def _key_of(request: Request, *, required: bool = True) -> tuple[bool, str]:
    """Whether a form was sent rather than JSON, and the key in it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", "application/json", "" if not required else "-"):
        raise UnsupportedMediaType("expected a form or Content-Type: application/json")
    content = without_mark(await read_body(request, _MAX_FORM))
    if not required:
        return True, ""
    if kind == "application/json":
        try:
            return False, msgspec.json.decode(content, type=Login).key
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"expected a JSON object with key: {error}") from error
    return True, parse_qs(content.decode("utf-8", "replace")).get("key", [""])[0].strip()


def login_form(method: str, path: str, accept: str, root: str) -> WireResponse | None:
    """The login form, if a browser requests the page. `root` is where the application is mounted."""
    is_page = method == "GET" and path in ("/", "/ui", "/ui/") and "text/html" in accept
    return login_page(f"{root}/ui/") if is_page else None


def login_page(url: str, problem: str = "", *, status: int = 401) -> WireResponse:
    """The login form, self-contained, since no other file is served without a key."""
    message = f'<p id="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    described = ' aria-describedby="problem" aria-invalid="true"' if problem else ""
    text = _PAGE.replace("{message}", message).replace("{described}", described).replace("{style}", _STYLE)
    text = text.replace("{url}", html.escape(url))
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    return WireResponse(
        status=status,
        media_type="text/html; charset=utf-8",
        headers=(
            *SECURITY_HEADERS.items(),
            ("Content-Security-Policy", policy),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept, Cookie"),
            *((("WWW-Authenticate", "Bearer"),) if status == 401 else ()),
        ),
        body=text.encode(),
    )


def _response(answer: WireResponse) -> Response:
    return Response(answer.body, status_code=answer.status, media_type=answer.media_type, headers=dict(answer.headers))


def _port(request: Request) -> int:
    server = request.scope.get("server")
    return int(server[1]) if server and server[1] else 0


_STYLE = """
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
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in · Hostler</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><h1>Hostler</h1><p>Log in with an API key that has the scope read or operate.</p>{message}
<form method="post" action="{url}login"><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus spellcheck="false"{described}>
<button>Log in</button></form></main></body></html>"""
