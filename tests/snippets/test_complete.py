"""No fence is missed: a second, simpler reading of every page finds nothing that the book's reader has not listed."""

import re
from pathlib import Path

import pytest
from examples import parse
from fences import CODE, LANGUAGES, OTHER, REFUSED, pages, read
from sybil import Sybil

ROOT = Path(__file__).parents[2]
OPENING = re.compile(r"^[\s>*+\-0-9.]*(`{3,}(?!`)|~{3,}(?!~)|:{3,}(?!:))\s*([^`\s].*)$")


def openings(text: str) -> list[tuple[int, str]]:
    """Lines that open something with a name, read line by line without any Markdown parser."""
    found = ((number, OPENING.match(line)) for number, line in enumerate(text.splitlines(), 1))
    return [(number, match[2].strip()) for number, match in found if match]


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_opening_is_a_listed_fence(page: Path):
    fences = read(page, ROOT)
    listed = {fence.line for fence in fences}
    within = {
        line
        for fence in fences
        for line in range(fence.line + 1, fence.line + 1 + fence.content.count("\n"))
        if fence.source is None
    }
    for line, info in openings(page.read_text(encoding="utf-8")):
        directive = re.match(r"\{([^}]*)\}", info)
        if line in within or (directive and directive[1] not in CODE | REFUSED):
            continue
        assert line in listed, f"{page.name}:{line}: {info}: the book's reader does not list this fence"


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_fence_is_tested_or_excepted_with_a_reason(page: Path):
    problems = [f"{page.name}:{fence.line}: {fence.problem}" for fence in read(page, ROOT) if fence.problem]
    assert not problems


def test_sybil_sees_every_fence_of_every_page():
    sybil = Sybil([parse], pattern="*.md", path=str(ROOT))
    for page in pages(ROOT):
        regions = [example.parsed.line for example in sybil.parse(page)]
        assert regions == [fence.line for fence in read(page, ROOT)]


def test_kinds_do_not_overlap():
    assert not CODE & OTHER
    assert not REFUSED & (CODE | OTHER)
    assert "python" in LANGUAGES
