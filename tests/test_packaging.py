"""The sdist and the wheel made from it hold all of the product, and nothing in places that belong to others."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
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
    """What somebody gets who unpacks the sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is made from the sdist, not from the checkout."""
    return _built("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def names(wheel: Path) -> set[str]:
    """The paths inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


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
    assert {name.partition("/")[0] for name in names} == {"hostler", f"hostler-{__version__}.dist-info"}


def test_the_wheel_holds_no_tests(names: set[str]) -> None:
    assert not [name for name in names if "test" in name]


def test_the_wheel_says_whose_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"hostler-{__version__}.dist-info/METADATA").decode()
        assert archive.read(f"hostler-{__version__}.dist-info/licenses/LICENSE")
    assert f"Version: {__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "# Hostler" in metadata


def test_the_sdist_holds_the_tests_and_the_documents_too(unpacked: Path) -> None:
    for name in ("noxfile.py", "tests/test_packaging.py", "docs/configuration.md", "CHANGELOG.md", "README.md"):
        assert (unpacked / name).is_file(), name


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
