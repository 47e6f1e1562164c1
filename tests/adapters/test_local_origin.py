"""Origins of pages that run on this machine."""

from __future__ import annotations

import pytest

from hostler.adapters.local_origin import is_local_origin


@pytest.mark.parametrize(
    ("origin", "local"),
    [
        ("http://localhost", True),
        ("https://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("http://0.0.0.0", True),
        ("app://obsidian.md", True),
        ("tauri://localhost", True),
        ("vscode-webview://1abc", True),
        ("vscode-file://vscode-app", True),
        ("null", False),
        ("file://", False),
        ("chrome-extension://x", False),
        ("http://localhost.evil.example", False),
        ("http://localhost:x", False),
        ("http://LOCALHOST@evil", False),
        ("http://10.0.0.5", False),
        ("https://evil.example", False),
    ],
)
def test_no_website_can_have_a_local_origin(origin: str, local: bool) -> None:
    assert is_local_origin(origin) is local
