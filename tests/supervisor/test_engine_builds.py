"""llama-servers that are installed side by side."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from fakes.llama_programs import build_llama_server, pack, pack_zip, write_program, write_script

from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.engine_builds import archive_name, check_program, find_program, install_build, installed_builds


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A release archive as llama.cpp has them."""
    write_program(tmp_path / "release/llama-b6711/llama-server", devices=("Vulkan0: Radeon (8192 MiB, 8000 MiB free)",))
    return pack(tmp_path / "release/llama-b6711", tmp_path / "llama-b6711-bin-ubuntu-vulkan-x64.tar.gz")


def failure(error: pytest.ExceptionInfo[SupervisorError]) -> str:
    return error.value.failure.message


def test_an_archive_is_installed_under_its_name(archive: Path, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    build = install_build(archive, engines)
    assert build.name == "llama-b6711-bin-ubuntu-vulkan-x64"
    assert build.program == engines / build.name / "llama-b6711/llama-server"
    assert (build.read.build, build.read.devices) == ("6711 (abc)", ("Vulkan0: Radeon (8192 MiB, 8000 MiB free)",))
    assert [(each.name, each.program) for each in installed_builds(engines)] == [(build.name, build.program)]
    assert (engines / build.name).stat().st_mode & 0o777 == 0o755
    assert [each.name for each in engines.iterdir()] == [build.name]


def test_a_folder_is_copied_and_named_by_its_build(tmp_path: Path) -> None:
    write_program(tmp_path / "llama.cpp/build/bin/llama-server")
    build = install_build(tmp_path / "llama.cpp", tmp_path / "engines")
    assert build.name == "b6711"
    assert build.program == tmp_path / "engines/b6711/build/bin/llama-server"
    assert (tmp_path / "llama.cpp/build/bin/llama-server").exists()


def test_a_folder_is_not_copied_into_itself(tmp_path: Path) -> None:
    write_program(tmp_path / "llama.cpp/llama-server")
    with pytest.raises(SupervisorError) as error:
        install_build(tmp_path / "llama.cpp", tmp_path / "llama.cpp/engines")
    assert "contains the folder of installed engines" in failure(error)
    assert not list((tmp_path / "llama.cpp/engines").iterdir())


def test_programs_of_a_zip_without_modes_can_be_run(tmp_path: Path) -> None:
    program = write_program(tmp_path / "llama-server")
    with zipfile.ZipFile(tmp_path / "win.zip", "w") as archive:
        archive.writestr("bin/llama-server", program.read_bytes())
    assert install_build(tmp_path / "win.zip", tmp_path / "engines").read.build == "6711 (abc)"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\necho 'libcuda.so.1: cannot open shared object file' >&2; exit 127\n", "status 127: libcuda.so.1"),
        ("#!/bin/sh\nkill -ILL $$\n", "SIGILL: it is built for another processor"),
        ("#!/bin/sh\nkill -SEGV $$\n", "SIGSEGV: no output"),
        ("#!/bin/sh\necho hello\n", "its --help is not that of a llama-server"),
    ],
)
def test_what_does_not_run_is_not_installed(tmp_path: Path, script: str, reason: str) -> None:
    write_script(tmp_path / "release/llama-server", script)
    install_build(
        pack(write_program(tmp_path / "a/llama-server").parent, tmp_path / "good.tar.gz"), tmp_path / "engines"
    )
    with pytest.raises(SupervisorError) as error:
        install_build(pack(tmp_path / "release", tmp_path / "bad.tar.gz"), tmp_path / "engines")
    assert "llama-server does not run: " in failure(error) and reason in failure(error)
    assert [each.name for each in (tmp_path / "engines").iterdir()] == ["good"]


def test_a_program_that_cannot_be_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SupervisorError, match="No such file"):
        check_program((str(tmp_path / "nothing"),))


def test_arguments_that_the_program_does_not_know_are_found(tmp_path: Path) -> None:
    script = '#!/bin/sh\n[ "$1" = --gone ] && { echo "error: invalid argument: --gone"; exit 1; }\n'
    write_script(tmp_path / "new/llama-server", script)
    with pytest.raises(SupervisorError) as error:
        install_build(tmp_path / "new", tmp_path / "engines", arguments=["--gone"])
    assert "status 1: error: invalid argument: --gone" in failure(error)


def test_nothing_is_replaced(archive: Path, tmp_path: Path) -> None:
    build = install_build(archive, tmp_path / "engines")
    with pytest.raises(SupervisorError) as error:
        install_build(archive, tmp_path / "engines")
    assert f"{build.name} is installed already: `hostler engine use {build.name}`" in failure(error)
    assert install_build(archive, tmp_path / "engines", name="second").name == "second"
    assert [each.name for each in installed_builds(tmp_path / "engines")] == [build.name, "second"]


@pytest.mark.parametrize("name", ["../x", ".x", "-x", "a/b", "", "a b"])
def test_a_name_is_one_folder(archive: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SupervisorError, match="cannot be a name"):
        install_build(archive, tmp_path / "engines", name=name)


def test_what_holds_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SupervisorError, match="there is no llama-server in it"):
        install_build(tmp_path / "empty", tmp_path / "engines")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(SupervisorError, match=r"text\.txt is neither a zip nor a tar archive"):
        install_build(tmp_path / "text.txt", tmp_path / "engines")
    assert installed_builds(tmp_path / "engines") == [] and installed_builds(tmp_path / "nowhere") == []


@pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("tar") is None, reason="needs gcc and tar")
@pytest.mark.parametrize("layout", ["linux", "older linux"])
def test_a_release_with_libraries_and_links_beside_the_program_runs(tmp_path: Path, layout: str) -> None:
    """As llama.cpp packs them: a tar whose folder is the tag, earlier a zip with `build/bin`; libraries are found beside
    the program, by the names of links."""
    parts = build_llama_server(tmp_path / "bin")
    if layout == "linux":
        archive = tmp_path / "llama-b9999-bin-ubuntu-vulkan-x64.tar.gz"
        subprocess.run(["tar", "-czf", archive, "--transform", "s,^\\.,llama-b9999,", "-C", parts, "."], check=True)
        inside = "llama-b9999/llama-server"
    else:
        archive = pack_zip(parts, tmp_path / "llama-b9999-bin-ubuntu-vulkan-x64.zip", below="build/bin")
        inside = "build/bin/llama-server"
    build = install_build(archive, tmp_path / "engines")
    assert (build.name, build.read.build) == ("llama-b9999-bin-ubuntu-vulkan-x64", "9999 (abc1234)")
    assert build.program == tmp_path / "engines" / build.name / inside
    assert (build.program.parent / "libllama.so").is_symlink()
    shutil.rmtree(parts)
    assert installed_builds(tmp_path / "engines")[0].program == build.program
    assert check_program((str(build.program),)).devices == build.read.devices != ()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_release_that_lacks_its_library_says_so(tmp_path: Path) -> None:
    parts = build_llama_server(tmp_path / "bin")
    (parts / "libllama.so.0").unlink()
    with pytest.raises(SupervisorError, match=r"does not run: .*libllama\.so\.0"):
        install_build(pack(parts, tmp_path / "llama-b1-bin-ubuntu-x64.tar.gz"), tmp_path / "engines")
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_name_that_is_taken_is_refused_before_anything_is_unpacked(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "engines" / archive_name(archive.name)).mkdir(parents=True)
    archive.write_bytes(b"damaged")
    with pytest.raises(SupervisorError, match="is installed already"):
        install_build(archive, tmp_path / "engines")


def test_the_nearest_program_is_found(tmp_path: Path) -> None:
    assert find_program(tmp_path) is None
    far = write_program(tmp_path / "a/b/c/llama-server")
    assert find_program(tmp_path) == far
    near = write_program(tmp_path / "z/llama-server")
    assert find_program(tmp_path) == near
    assert find_program(tmp_path / "a/b/c/llama-server") is None


def test_libraries_of_another_archive_are_put_beside_the_program(archive: Path, tmp_path: Path) -> None:
    libraries = tmp_path / "cudart-llama"
    libraries.mkdir()
    (libraries / "libcudart.so.12.8").write_bytes(b"library")
    (libraries / "libcudart.so.12").symlink_to("libcudart.so.12.8")
    (libraries / "llama-server").write_bytes(b"another one")
    build = install_build(archive, tmp_path / "engines", beside=[pack(libraries, tmp_path / "cudart.tar.gz")])
    assert (build.program.parent / "libcudart.so.12").read_bytes() == b"library"
    assert build.program.read_bytes() != b"another one"
    assert [each.name for each in (tmp_path / "engines").iterdir()] == [build.name]
