"""Every internal link of the built site: the file is there, and so is the anchor.

Sphinx warns about broken references in pages; this looks at what was written, templates and raw HTML included.
"""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Collects a page's links and the anchors that others may point at."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[int, str]] = []
        self.anchors: set[str] = {"", "top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" or (key == "name" and tag == "a"):
                self.anchors.add(value or "")
            elif key in ("href", "src") and value is not None:
                self.links.append((self.getpos()[0], value))


def broken(site: Path) -> list[str]:
    """One line for each internal link of the site that leads nowhere."""
    pages = {path: _read(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    problems = []
    for path, page in sorted(pages.items()):
        for line, link in page.links:
            where = urlsplit(link)
            if where.scheme or where.netloc:
                continue
            target = (path.parent / unquote(where.path)).resolve() if where.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                problems.append(f"{path.relative_to(site)}:{line}: no file for {link}")
            elif target in pages and unquote(where.fragment) not in pages[target].anchors:
                problems.append(f"{path.relative_to(site)}:{line}: no anchor for {link}")
    return problems


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
