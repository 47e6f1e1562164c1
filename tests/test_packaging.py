"""The sdist and the wheel made from it hold all of the product, and nothing in places that belong to others."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from hostler import __version__

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "adapters", "supervisor", "profiles")
SHIPPED = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*"))
    if path.suffix in (".py", ".yaml", ".css", ".html", ".js", ".svg")
]


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would be uploaded."""
    return _built("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder inside the sdist. Read only: other tests compare it with the checkout."""
    return _unpack(sdist, tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="session")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is made from the sdist, not from the checkout."""
    return _built("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def names(wheel: Path) -> set[str]:
    """The paths inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _unpack(sdist: Path, target: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    return target / sdist.name.removesuffix(".tar.gz")


def _built(kind: str, source: Path, target: Path) -> Path:
    command = [sys.executable, "-c", "from hatchling.cli import hatchling; hatchling()", "build", "-t", kind]
    result = subprocess.run(
        [*command, "-d", target], cwd=source, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    (built,) = target.iterdir()
    return built


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_wheel_holds_every_file_of_the_packages(file: Path, names: set[str]) -> None:
    assert f"hostler/{file.relative_to(ROOT)}" in names


def test_the_wheel_is_marked_as_typed(names: set[str]) -> None:
    assert {"hostler/py.typed", "hostler/__init__.py"} <= names


def test_the_wheel_takes_no_name_that_belongs_to_others(names: set[str]) -> None:
    data = f"hostler-{__version__}.data"
    assert {name.partition("/")[0] for name in names} == {"hostler", f"hostler-{__version__}.dist-info", data}
    assert {name for name in names if name.startswith(data)} == {f"{data}/data/share/man/man1/hostler.1"}


def test_the_wheel_holds_no_tests(names: set[str]) -> None:
    assert not [name for name in names if "test" in name]


def test_the_wheel_says_whose_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"hostler-{__version__}.dist-info/METADATA").decode()
        assert archive.read(f"hostler-{__version__}.dist-info/licenses/LICENSE")
    assert f"Version: {__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "# Hostler" in metadata


def test_the_sdist_holds_every_tracked_file_but_the_links(unpacked: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout knows which files are tracked")
    listed = _run("git", "ls-files", "-z", folder=ROOT).split("\0")
    tracked = {name for name in listed if name and not (ROOT / name).is_symlink()}
    # The build of the wheel may have compiled the build hook.
    files = (path for path in unpacked.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    held = {str(path.relative_to(unpacked)) for path in files}
    assert held == tracked | {"PKG-INFO"}


@pytest.mark.timeout(180)
def test_an_editable_install_of_the_unpacked_sdist_works(sdist: Path, tmp_path: Path) -> None:
    """`pip install -e .` as anyone would run it, except that what it depends on is taken from this environment."""
    unpacked = _unpack(sdist, tmp_path)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    names = {"base": str(environment), "platbase": str(environment)}
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(sysconfig.get_path("purelib", "venv", names), "dependencies.pth").write_text("\n".join(sorted(here)))
    offline = ["--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    _run(python, "-m", "pip", "install", "--quiet", *offline, "--editable", ".", folder=unpacked)
    code = "import importlib, sys; print(*(importlib.import_module(name).__file__ for name in sys.argv[1:]), sep='\\n')"
    found = _run(
        python, "-I", "-c", code, *(f"hostler.{package}" for package in PACKAGES), folder=tmp_path
    ).splitlines()
    assert [Path(file).resolve() for file in found] == [unpacked / package / "__init__.py" for package in PACKAGES]
    assert _run(environment / "bin" / "hostler", "--version", folder=tmp_path) == f"hostler {__version__}\n"


def _run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_is_linked_for_editable_installs() -> None:
    for package in PACKAGES:
        assert (ROOT / "src" / "hostler" / package).resolve() == ROOT / package


def test_the_lock_file_names_only_the_public_index() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    sources = [package["source"] for package in lock["package"] if package["name"] != "hostler"]
    (registry,) = {source.get("registry") for source in sources}
    assert registry.startswith("https://")
    files = [file["url"] for package in lock["package"] for file in package.get("wheels", [])]
    assert files
    (host,) = {url.split("/")[2] for url in files}
    assert all(url.startswith(f"https://{host}/") for url in files)
