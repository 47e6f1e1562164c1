"""Addresses of models, and where their files are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hostler.profiles.sources import ModelSource, SourceError, cache_directory


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/m/x.gguf", ModelSource(kind="path", file="/m/x.gguf")),
        ("x:y.gguf", ModelSource(kind="path", file="x:y.gguf")),
        ("hf:a/b/c/d.gguf", ModelSource(kind="hf", origin="a/b", version="main", file="c/d.gguf")),
        ("hf:a/b@v1/d.gguf", ModelSource(kind="hf", origin="a/b", version="v1", file="d.gguf")),
        ("hf:a/b:Q4_K_M", ModelSource(kind="hf", origin="a/b", version="main", file="", quantization="Q4_K_M")),
        ("hf:a/b@v1:Q8_0", ModelSource(kind="hf", origin="a/b", version="v1", file="", quantization="Q8_0")),
        ("pypi:p-q==1.0/a/b.gguf", ModelSource(kind="pypi", origin="p-q", version="1.0", file="a/b.gguf")),
        ("https://h/a/b.gguf?x=1", ModelSource(kind="https", origin="https://h/a/b.gguf?x=1", file="b.gguf")),
    ],
)
def test_parses_addresses(text: str, source: ModelSource) -> None:
    assert ModelSource.parse(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "", "a\0b", "http://h/x.gguf", "ftp://h/x", "hf:a/b", "hf:a/b:", "hf:a/b:..", "hf:a/b:Q4/c", "hf:../b/c.gguf", "hf:a/b/../c.gguf", "hf:a/b//c.gguf",
        "pypi:p/x.gguf", "pypi:p>=1/x.gguf", "pypi:p==1/../x.gguf", "pypi:-e==1/x", "https://h/", "https:x",
        "https://user:pw@h/x.gguf", "hf:a/b/c\\d.gguf", "hf:a/b/c\nd.gguf",
    ],
)  # fmt: skip
def test_rejects_malformed_addresses(text: str) -> None:
    with pytest.raises(SourceError):
        ModelSource.parse(text)


def test_the_cache_directory_follows_the_platform(tmp_path: Path) -> None:
    assert cache_directory({"HOSTLER_CACHE": str(tmp_path)}) == tmp_path
    if sys.platform != "darwin":
        assert cache_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "hostler"
        assert cache_directory({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "hostler"


@pytest.mark.parametrize(
    "model", ["hf:org/repo/C:/x.gguf", "https://registry.ollama.ai/v2/a/b/blobs/sha256:0a", "pypi:a==1/C:/x.gguf"]
)
def test_no_colon_leads_out_of_the_cache_on_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    source = ModelSource.parse(model)
    assert source.local_path(tmp_path).name == source.name  # elsewhere they are names like others
    monkeypatch.setattr(sys, "platform", "win32")
    assert ":" not in str(source.local_path(tmp_path).relative_to(tmp_path))
