"""`hostler engine`: list, use, update."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from fakes.llama_programs import pack, write_program, write_script
from typer.testing import CliRunner, Result

from hostler.gateway.cli.main import app

FILE = """\
# mine
supervisor:
  engine: {engine}   # the old one
profiles:
  chat: {{model: x.gguf}}
  other: {{model: x.gguf, engine: embedded}}
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file with an engine, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOSTLER_CONFIG", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOSTLER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "x.gguf").write_bytes(b"x" * 2048)
    path = tmp_path / "hostler.yaml"
    path.write_text(FILE.format(engine=write_program(tmp_path / "old/llama-server", build="1 (old)")))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_program(tmp_path / "release/llama/llama-server", devices=("CUDA0: RTX 4090 (24080 MiB, 23500 MiB free)",))
    return pack(tmp_path / "release/llama", tmp_path / "llama-b6711-cuda.tar.gz")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["engine", *arguments])


def output(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def engines() -> dict[str, Any]:
    return {each["name"]: each for each in output("list") if each["name"] != "embedded"}


def test_the_list_shows_what_is_there_and_what_uses_it(file: Path, tmp_path: Path) -> None:
    write_script(tmp_path / "bin/llama-server", "#!/bin/sh\necho no driver; exit 1\n")
    shown = [" ".join(line.split()) for line in run("list").output.splitlines()]
    old = f"{tmp_path}/old/llama-server"
    assert shown[0] == "ENGINE BUILD DEVICES USED BY PROGRAM"
    assert f"{old} * 1 (old) CPU only chat {old}" in shown
    assert f"llama-server - cannot be used - {tmp_path}/bin/llama-server" in shown
    assert shown[-1] == "llama-server cannot be used: it ended with status 1: no driver"
    assert engines()["llama-server"]["failure"] == "it ended with status 1: no driver"


def test_another_program_is_used_and_the_rest_of_the_file_stays(file: Path, tmp_path: Path) -> None:
    new = write_program(tmp_path / "new/build/bin/llama-server", devices=("Vulkan0: Radeon (1 MiB, 1 MiB free)",))
    for spelling in (str(new), str(tmp_path / "new"), "new"):
        file.write_text(FILE.format(engine=tmp_path / "old/llama-server"))
        assert run("use", spelling).output.splitlines() == [
            "build: 6711 (abc); devices: Vulkan0: Radeon (1 MiB, 1 MiB free)",
            f"{file}: supervisor.engine is now {new}",
            "not for other, which have an engine of their own",
            "takes effect when Hostler is started again; engines that are running are not touched",
        ]
        assert file.read_text() == FILE.format(engine=new)
    assert output("use", str(new)) == {
        "engine": str(new), "build": "6711 (abc)", "devices": ["Vulkan0: Radeon (1 MiB, 1 MiB free)"],
        "file": str(file), "profiles": ["chat"],
    }  # fmt: skip


def test_a_preset_or_an_engine_of_the_file_is_used_by_its_name(file: Path, tmp_path: Path) -> None:
    write_program(tmp_path / "bin/llama-server")
    assert output("use", "llama-server")["engine"] == "llama-server"
    own = write_program(tmp_path / "own/llama-server")
    file.write_text(file.read_text() + f"engines: {{mine: {{base: llama-server, command: {own}}}}}\n")
    assert output("use", "mine")["engine"] == "mine"
    assert engines()["mine"]["default"] is True and engines()["mine"]["used_by"] == ["chat"]


def test_arguments_of_the_engine_are_kept_unless_others_are_given(file: Path, tmp_path: Path) -> None:
    old, new = (write_program(tmp_path / name / "llama-server") for name in ("old", "new"))
    file.write_text(FILE.format(engine=f"{old} -fa on"))
    assert output("use", str(new))["engine"] == f"{new} -fa on"
    assert output("use", f"{new} --mlock")["engine"] == f"{new} --mlock"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing"], 2, "nothing: there is no such engine or program"),
        (["'open"], 2, "'open: No closing quotation"),
        (["empty"], 1, "empty: there is no llama-server in that folder"),
        (["broken"], 1, "broken/llama-server does not run: it ended with status 1: no driver; nothing was changed"),
        (["vllm"], 1, "needs the program vllm, which does not exist or is not executable; nothing was changed"),
    ],
)
def test_what_cannot_run_is_not_used(file: Path, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write_script(tmp_path / "broken/llama-server", "#!/bin/sh\necho no driver; exit 1\n")
    before = file.read_text()
    result = run("use", *words)
    assert (result.exit_code, file.read_text()) == (code, before)
    assert message in result.output


def test_an_engine_that_the_profiles_cannot_do_with_is_not_used(file: Path) -> None:
    pytest.importorskip("xllamacpp")
    file.write_text(file.read_text().replace("chat: {model: x.gguf}", "chat: {model: x.gguf, gpu_layers: 9}"))
    before = file.read_text()
    result = run("use", "embedded")
    assert result.exit_code == 2 and "gpu_layers" in result.output and "nothing was changed" in result.output
    assert file.read_text() == before


def test_an_update_is_used_and_the_old_engine_stays(file: Path, archive: Path, tmp_path: Path) -> None:
    program = tmp_path / "state/hostler/engines/llama-b6711-cuda/llama/llama-server"
    shown = run("update", archive.name).output.splitlines()
    assert shown[:2] == [
        f"installed llama-b6711-cuda: {program}",
        "build: 6711 (abc); devices: CUDA0: RTX 4090 (24080 MiB, 23500 MiB free)",
    ]
    assert file.read_text() == FILE.format(engine=program)
    assert engines()["llama-b6711-cuda"]["used_by"] == ["chat"]
    old = str(tmp_path / "old/llama-server")
    assert output("use", old)["engine"] == old
    assert output("use", "llama-b6711-cuda")["engine"] == str(program)


def test_a_first_engine_makes_the_configuration_file(file: Path, archive: Path) -> None:
    file.unlink()
    assert run("update", str(archive), "--folder", "mine").exit_code == 0
    engine = file.parent / "mine/llama-b6711-cuda/llama/llama-server"
    assert file.read_text() == f"supervisor:\n  engine: {engine}\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing.zip"], 2, "nothing.zip: no such file or folder"),
        (["llama-b6711-cuda.tar.gz", "--sha256", "abc"], 2, "--sha256 expects 64 hexadecimal digits"),
        (["llama-b6711-cuda.tar.gz", "--sha256", "0" * 64], 1, f"expected {'0' * 64}; nothing was changed"),
        (["release", "x.zip", "--sha256", "0" * 64], 2, "once for each of the 2 archives, or not at all"),
        (["release", "--sha256", "0" * 64], 2, "--sha256 is for archives, not for folders"),
        (["llama-b6711-cuda.tar.gz", "--name", "embedded"], 2, "embedded is the name of another engine"),
        (["llama-b6711-cuda.tar.gz", "--name", "../x"], 1, "'../x' cannot be a name"),
        (["broken"], 1, "does not run: it ended with status 1: no driver; nothing was changed"),
        (["x.gguf"], 1, "x.gguf is neither a zip nor a tar archive, or is damaged"),
        (["http://example.com/x.zip"], 1, "nothing was changed"),
        (["ftp://example.com/x.zip"], 1, "nothing was changed"),
    ],
)
def test_what_cannot_be_installed_changes_nothing(
    file: Path, archive: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    write_script(tmp_path / "broken/llama-server", "#!/bin/sh\necho no driver; exit 1\n")
    before = file.read_text()
    result = run("update", *words)
    assert (result.exit_code, file.read_text()) == (code, before)
    assert message in result.output
    assert not list(tmp_path.glob("state/hostler/engines/*"))


def test_the_right_checksum_is_accepted(file: Path, archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert output("update", str(archive), "--sha256", digest.upper())["build"] == "6711 (abc)"


class Releases(BaseHTTPRequestHandler):
    """Serves one archive at `/llama.tar.gz`, and `others`; what is at `/huge.zip` says that it is far too large."""

    content = b""
    others: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        content = self.others.get(self.path, self.content)
        size = 2**50 if self.path == "/huge.zip" else len(content)
        self.send_response(200 if self.path.endswith((".gz", ".zip")) else 404)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def releases(archive: Path) -> Iterator[str]:
    Releases.content = archive.read_bytes()
    Releases.others.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Releases) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_archive_is_downloaded_from_an_address(file: Path, releases: str) -> None:
    digest = hashlib.sha256(Releases.content).hexdigest()
    assert output("update", f"{releases}/llama.tar.gz", "--sha256", digest)["devices"] != []
    assert "engines/llama/llama/llama-server" in file.read_text()


def test_two_archives_of_the_same_name_are_both_installed(
    file: Path, tmp_path: Path, releases: str, archive: Path
) -> None:
    write_script(tmp_path / "cuda/libcudart.so", "library")
    Releases.others["/cuda/llama.tar.gz"] = pack(tmp_path / "cuda", tmp_path / "cuda.tar.gz").read_bytes()
    program = Path(output("update", f"{releases}/llama.tar.gz", f"{releases}/cuda/llama.tar.gz")["engine"])
    assert (program.parent / "libcudart.so").read_text() == "library"


@pytest.mark.parametrize(
    ("path", "words", "message"),
    [
        ("huge.zip", [], "not enough disk space"),
        ("gone", [], "answered 404"),
        ("llama.tar.gz", ["--sha256", "0" * 64], f"expected {'0' * 64}; nothing was changed"),
    ],
)
def test_a_download_that_is_not_what_was_asked_for_changes_nothing(
    file: Path, tmp_path: Path, releases: str, path: str, words: list[str], message: str
) -> None:
    before = file.read_text()
    result = run("update", f"{releases}/{path}", *words)
    assert result.exit_code == 1 and message in result.output, result.output
    assert file.read_text() == before and not list(tmp_path.glob("state/hostler/engines/*"))


def test_an_installed_build_is_removed_once_nothing_uses_it(file: Path, archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state/hostler/engines"
    assert run("update", str(archive)).exit_code == 0
    assert run("update", str(archive), "--name", "second").exit_code == 0
    used = run("remove", "second")
    assert used.exit_code == 1 and "second is used by supervisor.engine; choose another one first" in used.stderr
    assert run("remove", "llama-b6711-cuda").stdout == "removed llama-b6711-cuda\n"
    assert [each.name for each in folder.iterdir()] == ["second"]
    assert run("use", str(tmp_path / "old/llama-server")).exit_code == 0
    assert output("remove", "second") == {"removed": "second"}
    assert list(folder.iterdir()) == []


def test_a_build_that_an_engine_or_a_profile_names_is_kept(file: Path, archive: Path) -> None:
    program = output("update", str(archive))["engine"]
    file.write_text(
        f"engines: {{mine: {{base: llama-server, command: [{program}]}}}}\n"
        f"profiles: {{chat: {{model: x.gguf, engine: mine}}, other: {{model: x.gguf, engine: {program}}}}}\n"
    )
    result = run("remove", "llama-b6711-cuda")
    assert result.exit_code == 1 and "is used by engines.mine, profiles.other" in result.stderr


def test_a_build_that_is_running_is_kept(file: Path, tmp_path: Path) -> None:
    place = tmp_path / "state/hostler/engines/one/llama-server"
    place.parent.mkdir(parents=True)
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", place)
    with subprocess.Popen([place, "600"]) as process:
        try:
            result = run("remove", "one")
        finally:
            process.kill()
    assert result.exit_code == 1 and f"one is running, as process {process.pid}" in result.stderr
    assert place.exists()


def test_a_removal_that_is_interrupted_before_it_begins_does_not_claim_success(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "state/hostler/engines/one/llama-server"
    place.parent.mkdir(parents=True)
    place.touch(0o755)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.mkdtemp", interrupt)
    result = run("remove", "one")
    assert result.exit_code == 130 and "removed" not in result.output
    assert place.exists()


@pytest.mark.parametrize("name", ["gone", "embedded", "../old", ""])
def test_only_installed_builds_are_removed(file: Path, tmp_path: Path, name: str) -> None:
    result = run("remove", name)
    assert result.exit_code == 2 and "is no installed build" in result.stderr
    assert (tmp_path / "old/llama-server").exists()


def test_an_archive_whose_name_is_taken_is_not_downloaded(file: Path, tmp_path: Path) -> None:
    (tmp_path / "state/hostler/engines/llama-b1").mkdir(parents=True)
    result = run("update", "https://127.0.0.1:1/llama-b1.tar.gz")
    assert result.exit_code == 1 and "llama-b1 is installed already" in result.stderr
