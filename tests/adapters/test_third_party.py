"""A third-party adapter is found like installed packages are, and works beside the built-in ones."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import httpx
import pytest
from system.hostler_process import run_hostler

from hostler.adapters.registry import GROUP, load_adapters

PACKAGE = Path(__file__).parent.parent / "fakes" / "third_party"
ENGINE = Path(__file__).parent.parent / "fakes" / "fake_engine.py"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder with the example, as an installer creates it from its pyproject.toml."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "site"
    facts = folder / f"hostler_plain-{project['version']}.dist-info"
    facts.mkdir(parents=True)
    shutil.copy(PACKAGE / "hostler_plain.py", folder)
    name, version = project["name"], project["version"]
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"][GROUP].items()]
    (facts / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines))
    return folder


@pytest.fixture
def points(site: Path, monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The example's entry points."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "hostler_plain", raising=False)
    return [point for each in distributions(path=[str(site)]) for point in each.entry_points]


def test_a_third_party_adapter_is_loaded_and_a_broken_one_skipped(
    points: list[EntryPoint], caplog: pytest.LogCaptureFixture
) -> None:
    (plain,) = load_adapters(points)
    assert [operation.path for operation in plain.operations] == ["/plain/{model:path}", "/plain"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "adapter broken (hostler_plain:NoSuchAdapter) skipped" in caplog.text
    assert "NoSuchAdapter" in caplog.text


def test_the_gateway_serves_a_third_party_protocol(site: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    script = {"log": str(tmp_path / "engine.log")}
    configuration = tmp_path / "hostler.yaml"
    document = {
        "gateway": {"listen": ["127.0.0.1:0"]},
        "supervisor": {"engine": f"{sys.executable} -I -S {ENGINE}"},
        "profiles": {"org/a": {"model": str(model), "env": {"FAKE_ENGINE": json.dumps(script)}}},
    }
    configuration.write_text(json.dumps(document))
    found = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environ = {"PYTHONPATH": found, "HOSTLER_CACHE": str(tmp_path / "cache")}
    with run_hostler("up", "--config", str(configuration), errors=tmp_path / "log", environ=environ) as up:
        assert httpx.get(f"{up.address}/plain").text == "org/a\n"
        assert not (tmp_path / "engine.log").exists()
        response = httpx.post(f"{up.address}/plain/org/a", content="What is it?", timeout=30)
        assert response.text == "word0 word1 word2 word3 word4 \n"
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        unknown = httpx.post(f"{up.address}/plain/x", content="What is it?")
        assert (unknown.status_code, "the only model: org/a" in unknown.text) == (404, True)
        assert httpx.get(f"{up.address}/v1/models").status_code == 200
        assert "adapter broken (hostler_plain:NoSuchAdapter) skipped" in up.log
