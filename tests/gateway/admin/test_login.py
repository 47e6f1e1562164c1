"""The login form: who gets it, and what is in it."""

from __future__ import annotations

import pytest

from hostler.gateway.admin.login import login_form, login_page


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/"])
def test_a_browser_that_opens_the_page_gets_the_form(path: str) -> None:
    form = login_form("GET", path, "text/html,*/*", "/llm")
    assert form is not None
    assert form.status == 401
    assert b'action="/llm/ui/' in form.body


@pytest.mark.parametrize(
    ("method", "path", "accept"),
    [("POST", "/ui/", "text/html"), ("GET", "/ui/", "application/json"), ("GET", "/admin/status", "text/html")],
)
def test_programs_do_not_get_the_form(method: str, path: str, accept: str) -> None:
    assert login_form(method, path, accept, "") is None


def test_a_problem_is_shown_as_text() -> None:
    page = login_page("/ui/", "<b>wrong</b>", status=403)
    assert b"&lt;b&gt;wrong&lt;/b&gt;" in page.body
    assert (page.status, dict(page.headers).get("WWW-Authenticate")) == (403, None)
