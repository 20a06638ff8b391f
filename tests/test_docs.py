"""What the documents say about the code and about one another is so."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LEVELS = {"debug", "info", "warning", "error", "exception"}


def logged_events():
    """Return the texts of events that are written out where they are logged."""
    for package in ("overlay", "circuits", "exit", "payments"):
        for path in (ROOT / package).rglob("*.py"):
            if "demo" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                    continue
                of_log = isinstance(node.func.value, ast.Name) and node.func.value.id in ("log", "_log")
                if (of_log and node.func.attr in LEVELS) or node.func.attr == "_warn":
                    event = node.args[0]
                    if isinstance(event, ast.Constant):
                        yield event.value


def test_every_event_is_in_the_operators_manual():
    page = (ROOT / "docs/operations/logs.md").read_text()
    assert {event for event in logged_events() if f"| {event} |" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_named_in_pages_exist(page):
    named = re.findall(r"`((?:overlay|circuits|exit|tests|docs|scripts)/[\w./-]+)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_decisions_are_listed():
    folder = ROOT / "docs/decisions"
    index = (folder / "README.md").read_text()
    assert [page.name for page in folder.glob("0*.md") if f"({page.name})" not in index] == []


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
