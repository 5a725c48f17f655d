"""What a user gets from `pip install`: the package, and nothing of the repository around it."""

import configparser
import contextlib
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout, built offline by the setuptools at hand."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("mediffusion_diffusers", "pipelines", "tests", "training"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    folders = {name.split("/")[0] for name in wheel.namelist()}
    (dist_info,) = folders - {"mediffusion_diffusers"}
    assert dist_info.startswith("mediffusion_diffusers-") and dist_info.endswith(".dist-info")


def test_the_wheel_holds_every_module_and_data_file_of_the_package(wheel):
    package = ROOT / "mediffusion_diffusers"
    wanted = {
        path
        for path in package.rglob("*")
        if path.suffix in (".py", ".md", ".html", ".css", ".js") or path.name == "py.typed"
    }
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= set(wheel.namelist())


def test_the_wheel_brings_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "mediffusion = mediffusion_diffusers.commands.mediffusion:main" in wheel.read(name).decode()


def test_the_wheel_carries_the_licence_and_no_torchvision(wheel):
    (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert "Apache License" in wheel.read(licence).decode()
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    requirements = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    assert any(line.startswith("diffusers") for line in requirements)
    assert any(line.startswith("pydicom") and 'extra == "dev"' in line for line in requirements)
    assert not any(line.startswith("torchvision") for line in requirements)


def test_the_oldest_versions_that_are_allowed_are_those_that_are_tested():
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    allowed = {line for line in metadata["options"]["install_requires"].split() if ">=" in line}
    tested = (ROOT / "constraints-floors.txt").read_text().splitlines()
    assert allowed == {line.replace("==", ">=") for line in tested if not line.startswith("#")}


def test_the_versions_that_are_pinned_exist_for_every_python_that_is_allowed():
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg")
    oldest = metadata["options"]["python_requires"].removeprefix(">=")
    unpinned = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pin = Requirement(line.partition("#")[0]) if line.partition("#")[0].strip() else None
        if pin is None or (pin.marker and not pin.marker.evaluate({"python_version": oldest})):
            continue
        with contextlib.suppress(PackageNotFoundError):  # of an extra that is not installed here
            needed = distribution(pin.name).metadata["Requires-Python"] or ""
            if not SpecifierSet(needed).contains(f"{oldest}.99"):
                unpinned.append(f"{pin.name} needs Python {needed}")
    assert unpinned == [], 'Add `; python_version >= "3.11"` or the like.'
