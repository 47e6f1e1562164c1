"""Ollama's model operations as its own package asks for them, against `hostler up` as a person runs it."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE

from hostler.gateway.auth.keys import add

HELLO = [{"role": "user", "content": "Hello"}]


def gguf(context: int = 8192) -> bytes:
    """The smallest model file: an architecture, its context, and no weights."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    keys += text("llama.context_length") + struct.pack("<II", 4, context)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + keys + bytes(32)


class Place:
    """A configuration with two models, one of which has its file in a wheel, and `hostler up` on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines = folder / "engines.log"
        self.library = folder / "hostler.models.yaml"
        model, index = folder / "model.gguf", folder / "index"
        model.write_bytes(gguf())
        index.mkdir()
        self._wheel(index)
        script = json.dumps({"log": str(self.engines)})
        self.document: dict[str, Any] = {
            "gateway": {"listen": ["127.0.0.1:0"], "library": {"delete": True, "uploads_max": "1MiB"}},
            "supervisor": {"engine": f"python3 -I -S {FAKE_ENGINE}"},
            "profiles": {
                "smol": {"model": str(model), "context": 2048, "default": True, "env": {"FAKE_ENGINE": script}},
                "far": {"model": "pypi:tiny-model==1.0/tiny/tiny.gguf", "env": {"FAKE_ENGINE": script}},
            },
        }
        self.environ = {
            "HOSTLER_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state"),
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "STATE_DIRECTORY": "",
        }  # fmt: skip
        self.runs = 0

    def _wheel(self, index: Path) -> None:
        about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny/tiny.gguf", gguf(4096))
            wheel.writestr("tiny_model-1.0.dist-info/METADATA", about)
            wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")

    def up(self, **gateway: Any) -> Any:
        """Run it; further settings of the gateway may be given."""
        self.runs += 1
        document = {**self.document, "gateway": {**self.document["gateway"], **gateway}}
        path = self.folder / "hostler.yaml"
        path.write_text(json.dumps(document))
        return run_hostler("up", "--config", str(path), errors=self.folder / f"log{self.runs}", environ=self.environ)

    def requests(self) -> list[dict[str, Any]]:
        """The bodies of all that engines were asked."""
        notes = [json.loads(line) for line in self.engines.read_text().splitlines()]
        return [json.loads(note["body"]) for note in notes if note["event"] == "request" and note["method"] == "POST"]

    def starts(self) -> list[str]:
        notes = [json.loads(line) for line in self.engines.read_text().splitlines()] if self.engines.exists() else []
        return [note["model"] for note in notes if note["event"] == "start"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A gateway shared by tests that create models under names of their own."""
    return Place(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def running(shared: Place) -> Iterator[HostlerProcess]:
    with shared.up() as running:
        yield running


@pytest.fixture(scope="module")
def client(running: HostlerProcess) -> Iterator[ollama.Client]:
    with ollama.Client(running.address) as client:
        yield client


def names(client: ollama.Client) -> set[str]:
    return {str(model.model) for model in client.list().models}


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(ollama.ResponseError) as raised:
        call()
    return raised.value.status_code, raised.value.error


def test_a_pull_brings_the_file_that_a_profile_names_and_starts_nothing(client: ollama.Client, shared: Place) -> None:
    assert client.show("far").details is not None and not client.show("far").modelinfo.get("llama.block_count")
    steps = list(client.pull("far", stream=True))
    words = [str(step.status) for step in steps]
    assert words[0] == "pulling manifest" and words[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    moved = [step for step in steps if step.digest]
    assert all(str(step.status) == f"pulling {str(step.digest)[7:19]}" for step in moved)
    assert moved[-1].completed == moved[-1].total == len(gguf())
    assert list((shared.folder / "cache").rglob("tiny.gguf"))
    assert client.show("far").modelinfo["general.architecture"] == "llama"
    assert client.pull("far").status == "success"
    assert "far" not in shared.starts()


def test_a_failed_pull_answers_in_ollamas_words(client: ollama.Client, running: HostlerProcess) -> None:
    assert refusal(lambda: client.pull("nope")) == (500, "pull model manifest: file does not exist")
    lines = httpx.post(f"{running.address}/api/pull", json={"model": "nope"})
    assert lines.status_code == 200 and lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == [
        {"status": "pulling manifest"},
        {"error": "pull model manifest: file does not exist"},
    ]


def test_a_copy_is_a_model_until_it_is_deleted(client: ollama.Client, shared: Place) -> None:
    assert client.copy("smol", "library/other:latest").status == "success"
    assert {"smol:latest", "other:latest"} <= names(client)
    digests = {model.model: model.digest for model in client.list().models}
    assert digests["other:latest"] == digests["smol:latest"]
    assert client.chat("OTHER", messages=HELLO).message.content
    assert "other" not in shared.starts()
    assert client.delete("other").status == "success"
    assert "other:latest" not in names(client)
    assert refusal(lambda: client.show("other"))[0] == 404


def test_a_preset_adds_its_system_prompt_and_shares_the_engine(
    client: ollama.Client, shared: Place, running: HostlerProcess
) -> None:
    turns = [ollama.Message(role="user", content="hi"), ollama.Message(role="assistant", content="Mamma mia")]
    steps = client.create(
        "mario", from_="smol", system="You are Mario.", parameters={"temperature": 0, "num_predict": 5, "stop": ["x"]},
        license=["MIT"], messages=turns, stream=True,
    )  # fmt: skip
    words = [str(step.status) for step in steps]
    assert words[0].startswith("using existing layer sha256:") and words[1].startswith("creating new layer sha256:")
    assert words[2:] == ["writing manifest", "success"]
    shown = client.show("mario")
    assert (shown.license, shown.parameters) == (
        "MIT",
        'num_ctx                        2048\ntemperature                    0\nnum_predict                    5\nstop                           "x"',
    )
    assert shown.details is not None and shown.details.parent_model == "smol:latest"
    before = len(shared.requests())
    client.chat("smol", messages=HELLO)
    client.chat("mario", messages=HELLO)
    client.generate("mario", "Hello")
    httpx.post(f"{running.address}/v1/chat/completions", json={"model": "mario", "messages": HELLO}).raise_for_status()
    plain, *made = [body for body in shared.requests()[before:] if "messages" in body]
    front = [
        {"role": "system", "content": "You are Mario."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Mamma mia"},
    ]
    assert plain["messages"] == HELLO
    assert [body["messages"] for body in made] == [[*front, *HELLO]] * 3
    assert [(body["temperature"], body["max_tokens"], body["stop"]) for body in made] == [(0, 5, ["x"])] * 3
    assert "mario" not in shared.starts()


def test_a_preset_with_a_context_of_its_own_is_a_profile(client: ollama.Client, shared: Place) -> None:
    client.create("long", from_="smol", parameters={"num_ctx": 4096}, system="Be long.")
    client.create("beyond", from_="long", parameters={"num_ctx": 99999})
    info = client.show("long").modelinfo
    assert info["llama.context_length"] == 4096
    assert client.show("beyond").modelinfo["llama.context_length"] == 8192  # no more than it was trained for
    client.chat("long", messages=HELLO)
    assert shared.starts()[-1] == "long"
    assert shared.requests()[-1]["messages"][0] == {"role": "system", "content": "Be long."}
    assert refusal(lambda: client.delete("long")) == (403, "beyond depends on long")


def test_created_models_survive_a_restart_and_the_file_keeps_comments(place: Place) -> None:
    with place.up() as running, ollama.Client(running.address) as client:
        client.copy("smol", "first")
        client.create("wide", from_="smol", parameters={"num_ctx": 4096})
    text = place.library.read_text()
    place.library.write_text(text.replace("  first:\n", "  first:  # my own remark\n"))
    with place.up() as running, ollama.Client(running.address) as client:
        client.copy("first", "second")
        assert {"first:latest", "second:latest", "wide:latest"} <= names(client)
    assert "# my own remark" in place.library.read_text()
    assert place.library.stat().st_mode & 0o077 == 0


def test_a_model_created_from_a_missing_one_is_ignored(place: Place) -> None:
    with place.up() as running, ollama.Client(running.address) as client:
        client.create("wide", from_="far", parameters={"num_ctx": 1024})
        client.copy("far", "near")
    del place.document["profiles"]["far"]
    with place.up() as running, ollama.Client(running.address) as client:
        assert names(client) == {"smol:latest"}
        assert "wide" in running.log and "this model is ignored" in running.log


def test_an_uploaded_file_is_deleted_with_its_model(client: ollama.Client, shared: Place) -> None:
    file = shared.folder / "mine.gguf"
    file.write_bytes(gguf(1024))
    digest = client.create_blob(file)
    assert client.create_blob(file) == digest
    words = [str(step.status) for step in client.create("mine", files={"mine.gguf": digest}, system="Hm.", stream=True)]
    assert words[0] == "parsing GGUF" and words[-1] == "success"
    assert client.show("mine").modelinfo["llama.context_length"] == 1024
    assert client.chat("mine", messages=HELLO).message.content
    kept = shared.folder / "cache" / "models" / "blobs"
    assert digest.replace(":", "-") in [path.name for path in kept.iterdir()]
    client.delete("mine")
    assert digest.replace(":", "-") not in [path.name for path in kept.iterdir()]


def test_an_upload_with_another_digest_is_not_kept(running: HostlerProcess, shared: Place) -> None:
    content = b"some bytes"
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    url = f"{running.address}/api/blobs/"
    assert httpx.head(url + digest).status_code == 404
    other = "sha256:" + "0" * 64
    wrong = httpx.post(url + other, content=content)
    assert wrong.status_code == 400
    assert wrong.json() == {"error": f'digest mismatch, expected "{other}", got "{digest}"'}
    assert httpx.post(url + "sha256-..", content=content).json() == {"error": "invalid digest format"}
    assert httpx.post(url + digest, content=bytes(2 * 1024 * 1024)).status_code == 413
    assert httpx.post(url + digest, content=content).status_code == 201
    assert (httpx.head(url + digest).status_code, httpx.post(url + digest, content=content).status_code) == (200, 200)
    kept = [path.name for path in (shared.folder / "cache/models/blobs").iterdir()]
    assert digest.replace(":", "-") in kept and not any(name.startswith(".") for name in kept)
    made = httpx.post(
        f"{running.address}/api/create", json={"model": "m", "files": {"m.gguf": digest}, "stream": False}
    )
    assert (made.status_code, made.json()) == (400, {"error": "supplied file was not in GGUF format"})


def test_failed_operations_say_why(client: ollama.Client) -> None:
    assert refusal(lambda: client.copy("nope", "x")) == (404, 'model "nope" not found')
    assert refusal(lambda: client.delete("nope")) == (404, "model 'nope' not found")
    assert refusal(lambda: client.create("x", from_="nope")) == (500, "pull model manifest: file does not exist")
    assert refusal(lambda: client.create("x")) == (400, "neither 'from' or 'files' was specified")
    status, words = refusal(lambda: client.create("x", files={"m.gguf": "sha256:" + "0" * 64}))
    assert status == 400 and "not found" in words
    status, words = refusal(lambda: client.create("x", from_="smol", template="{{ .Prompt }}!"))
    assert (status, words) == (400, "template is not supported: the model's own template is used")
    for call in (lambda: client.copy("smol", "FAR"), lambda: client.create("smol", from_="far")):
        assert refusal(call)[0] == 403
    assert refusal(lambda: client.delete("smol"))[0] == 403
    assert refusal(lambda: client.push("smol"))[1].startswith("push is not supported")
    assert not {"x:latest", "y:latest"} & names(client)


def test_deletes_and_uploads_are_disabled_by_default(place: Place) -> None:
    content = gguf()
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    with place.up(library={}) as running, ollama.Client(running.address) as client:
        client.copy("smol", "mine")
        assert refusal(lambda: client.delete("mine"))[0] == 403
        upload = httpx.post(f"{running.address}/api/blobs/{digest}", content=content)
        assert upload.status_code == 403 and "uploads_max" in upload.json()["error"]
        assert "mine:latest" in names(client)
    with place.up(library={"change": False, "delete": True}) as running, ollama.Client(running.address) as client:
        assert refusal(lambda: client.copy("smol", "other"))[0] == 403
        assert refusal(lambda: client.create("other", from_="smol"))[0] == 403
        client.delete("mine")


def test_changes_require_the_scope_operate(place: Place) -> None:
    file = place.folder / "keys"
    keys = {
        scopes: add(file, scopes.replace(" ", "-"), tuple(scopes.split()))
        for scopes in ("infer read", "infer read operate")
    }  # type: ignore[misc]
    headers = [{"Authorization": f"Bearer {key}"} for key in keys.values()]
    calls: list[Callable[[ollama.Client], object]] = [
        lambda client: client.pull("far"),
        lambda client: client.copy("smol", "other"),
        lambda client: client.create("another", from_="smol"),
        lambda client: client.delete("other"),
    ]
    with (
        place.up(api_keys_file=str(file)) as running,
        ollama.Client(running.address, headers=headers[0]) as poor,
        ollama.Client(running.address, headers=headers[1]) as rich,
    ):
        for call in calls:
            assert refusal(partial(call, poor))[0] == 403
        assert poor.pull("smol").status == "success"
        for call in calls:
            call(rich)
        assert poor.pull("far").status == "success"
        url = f"{running.address}/api/blobs/sha256:{'0' * 64}"
        assert httpx.post(url, content=b"x", headers=headers[0]).status_code == 403


def test_other_origins_cannot_change_models(running: HostlerProcess) -> None:
    url, body = f"{running.address}/api/copy", b'{"source": "smol", "destination": "curled"}'
    form = "application/x-www-form-urlencoded"
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": form, "Origin": running.address},
        {"Content-Type": form, "Sec-Fetch-Site": "same-origin"},
    ):
        assert httpx.post(url, content=body, headers=headers).status_code == 415
    assert httpx.post(url, content=body, headers={"Content-Type": form}).status_code == 200
    assert httpx.get(url).status_code == 405
