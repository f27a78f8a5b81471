"""The pages refer to what is there: files, scripts, tests,
parameters; each page can be reached from the README.
"""

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from explainmyxray.registry import GROUPS, SOURCES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(
    r"\b(?:stages|tests|docs|notebooks|models/tiny-paligemma|metrics)/"
    r"[\w./-]*\w\.(?:py|md|yaml|ipynb|sh|png)\b"
)
MADE_BY_A_RUN = {"metrics/runtime.json", "models/adapter"}
EXAMPLES = {  # what a page shows how to write
    "stages/explainmyxray/sources/my_hospital.py",
    "stages/explainmyxray/model/families/llava.py",
}
MISSPELT = {"lora.rr"}  # the example of what is refused


def names(pages):
    return [page.name for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_path_that_is_named_exists(page):
    named = set(PATH.findall(page.read_text())) - MADE_BY_A_RUN - EXAMPLES
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_test_that_is_named_exists(page):
    for path, test in re.findall(r"(tests/\w+\.py)::(\w+)", page.read_text()):
        tree = ast.parse((ROOT / path).read_text())
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_parameter_that_is_set_exists(page):
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    named = set(re.findall(r"-S '?([a-z_0-9.]+)=", page.read_text()))
    for name in sorted(named - MISSPELT):
        place = params
        for part in name.split("."):
            assert isinstance(place, dict) and part in place, name
            place = place[part]


def test_every_page_is_reached_from_the_readme():
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in found:
            continue
        found.add(page)
        for link in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text()):
            if not re.match(r"[a-z]+:", link):
                waiting.append((page.parent / link).resolve())
    assert set(PAGES) <= found


def test_every_source_is_on_the_page_of_data():
    page = (ROOT / "docs/data.md").read_text()
    assert [name for name in (*SOURCES, *GROUPS) if f"`{name}`" not in page] == []


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_bytes()) <= 8_500


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^    |`)make ([a-z][\w-]*)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


def test_no_page_is_empty():
    for page in PAGES:
        assert len(Path(page).read_text().split()) > 50, page.name
