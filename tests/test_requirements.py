"""requirements.txt against the code's imports, requirements.lock against requirements.txt; no network."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from conftest import ROOT
from imports import imported_modules

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
LINUX = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "os_name": "posix",
}
SOURCES = ["stages", "tests", "models/tiny-paligemma"]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> dict[str, str]:
    """Version of each direct dependency by its normalised name."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalised(name): version for name, version in pins}


def locked() -> list[tuple[Requirement, str]]:
    """Each requirement of the lock, with the lines that follow it: its hashes, and what asks for it."""
    entries = re.split(r"^(?=[a-z])", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    return [(Requirement(entry.partition("\\")[0]), entry) for entry in entries]


def asked_for_by(entry: str) -> set[str]:
    """Packages that need this one, and `-r requirements.txt`
    for a direct dependency: the comments that uv writes.
    """
    return set(re.findall(r"^ +# +(?:via +)?(\S.*)$", entry, re.MULTILINE)) - {"via"}


def applicable(python: str, machine: str) -> dict[str, str]:
    """Versions that the lock installs under one Python on Linux."""
    environment = {
        **LINUX,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
    }
    versions = {}
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in versions, f"{requirement.name} stands twice under Python {python}"
            versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    return versions


def test_each_imported_package_is_a_direct_dependency():
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    packages = {path.parent.name for path in files if path.name == "__init__.py"}
    own = {"install"} | {path.stem for path in files} | packages
    imported = {name.partition(".")[0] for path in files for name in imported_modules(path)}
    assert {"torch", "transformers", "sklearn", "pytest"} <= imported  # the reading of imports works

    # `evaluate` is a stage and a library; the library is the one that is imported
    foreign = imported - sys.stdlib_module_names - (own - {"evaluate"})
    foreign.remove("trl")  # the peer of one benchmark, which says how to install it
    distributions = packages_distributions()
    unpinned = {
        name
        for name in foreign
        if not {normalised(each) for each in distributions.get(name, [])} & direct().keys()
    }
    assert not unpinned


def test_the_lock_has_each_direct_dependency_in_its_version():
    versions = {requirement.name: str(requirement.specifier) for requirement, _ in locked()}
    differing = {name for name, version in direct().items() if versions.get(name) != f"=={version}"}
    assert not differing, "run make lock"


def test_the_lock_has_nothing_that_no_direct_dependency_asks_for():
    names = {requirement.name for requirement, _ in locked()}
    for requirement, entry in locked():
        asking = asked_for_by(entry)
        assert asking, requirement.name
        for each in asking:
            known = requirement.name in direct() if each == "-r requirements.txt" else each in names
            assert known, f"{requirement.name}, asked for by {each}: run make lock"


def test_each_locked_package_has_a_version_and_a_hash():
    for requirement, entry in locked():
        assert str(requirement.specifier).startswith("=="), requirement.name
        assert HASH.search(entry), requirement.name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_all_four_pythons_get_the_same_versions(machine):
    oldest, *others = (applicable(python, machine) for python in PYTHONS)
    assert direct().keys() <= oldest.keys()
    for other in others:
        assert other == oldest


def test_the_project_asks_for_the_pythons_that_the_makefile_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = SpecifierSet(project["requires-python"])
    code = re.search(
        r"^SUPPORTED := .*\((\d+), (\d+)\) <= .* <= \((\d+), (\d+)\)\)$",
        (ROOT / "Makefile").read_text(),
        re.M,
    )
    low, high = int(code[2]), int(code[4])
    assert [f"3.{minor}" for minor in range(low, high + 1)] == PYTHONS
    accepted = [f"3.{minor}.5" for minor in range(5, 20) if f"3.{minor}.5" in asked]
    assert accepted == [f"{python}.5" for python in PYTHONS]


def test_packages_that_go_with_torchs_build_are_asked_for_by_torch_alone(monkeypatch):
    """`TORCH=cpu` leaves them out; one that another library asks for would be missed."""
    monkeypatch.syspath_prepend(str(ROOT))
    from install import TORCH_PACKAGES

    left_out = {requirement.name for requirement, _ in locked() if TORCH_PACKAGES.fullmatch(requirement.name)}
    assert "nvidia-cublas" in left_out and "nvidia-ml-py" not in left_out
    for requirement, entry in locked():
        if requirement.name in left_out - {"torch", "torchvision"}:
            asking = asked_for_by(entry)
            assert asking <= left_out, requirement.name


def test_there_is_no_other_list_of_packages():
    """One place says what is installed."""
    lists = {path.name for path in Path(ROOT).glob("*require*")}
    assert lists == {"requirements.txt", "requirements.lock"}
