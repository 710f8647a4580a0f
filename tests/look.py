"""Look at the built site in a real browser: a picture of each page, and no page wider than its window.

python tests/look.py [PAGE …]

Opens docs/_build/html in headless Chromium as wide as a desktop and as a phone, in light and in dark, for the pages
named (``training`` or ``docs/training.md``) or for all, and keeps what it saw as docs/_build/look/PAGE-SIZE-THEME.png.
Ends with 1, and a line for each, where a page is wider than the window or a picture of it is missing.
"""

import base64
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

from browser import FOUND, Tab, browser

ROOT = Path(__file__).parents[1]
SITE, PICTURES = ROOT / "docs/_build/html", ROOT / "docs/_build/look"
SIZES = {"desktop": (1440, 900, False), "phone": (390, 844, True)}
TALLEST = 16_000  # pixels: the browser paints no higher picture
GENERATED = ("genindex", "py-modindex", "search")  # by Sphinx, not by a page
# The innermost of what reaches over the right edge, where no box around it scrolls or cuts.
WIDEST = """(() => {
  const cut = (element) => {
    for (let box = element.parentElement; box; box = box.parentElement)
      if (box !== document.body && getComputedStyle(box).overflowX !== "visible") return true;
    return false;
  };
  const right = (element) => element.getBoundingClientRect().right;
  const all = [...document.body.querySelectorAll("*")];
  const found = all.filter((element) => right(element) > WIDTH + 1 && !cut(element));
  return found.slice(-2).reverse().map((element) => element.outerHTML.slice(0, 80).replaceAll("\\n", " ")).join("; ");
})()"""
BROKEN = """[...document.images].filter((image) => image.complete && !image.naturalWidth && image.offsetParent)
  .map((image) => image.getAttribute("src")).join(" ")"""


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a line in the log for each."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def names(site: Path, asked: list[str]) -> list[str]:
    """Pages of the site: those asked for, as a name or a source file, or all."""
    there = sorted(path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html"))
    pages = [
        name for name in there if name not in GENERATED and not name.startswith(("_static/", "_modules/"))
    ]
    wanted = [page.removeprefix("docs/").removesuffix(".md").removesuffix(".html") for page in asked]
    if unknown := [page for page in wanted if page not in there]:
        sys.exit(f"{', '.join(unknown)}: no such page in {site}; there are {', '.join(pages) or 'none'}")
    return wanted or pages


def look(tab: Tab, address: str, size: str, theme: str, picture: Path) -> list[str]:
    """Open a page, keep a picture of it, and say what is wrong with what is seen."""
    width, height, phone = SIZES[size]
    tab.size(width, height, phone=phone)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    tab.open(address)
    tab.wait(f"document.documentElement.dataset.theme === '{theme}'")
    tab.run("document.querySelectorAll('img[loading=lazy]').forEach((image) => { image.loading = 'eager'; })")
    tab.wait("[...document.images].every((image) => image.complete)")
    tab.wait("document.fonts.status === 'loaded'")
    wide, high = tab.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": max(wide, width), "height": min(high, TALLEST), "scale": 1}
    shot = tab.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(base64.b64decode(shot))
    found = []
    if wide > width:
        what = tab.run(WIDEST.replace("WIDTH", str(width)))
        found.append(f"{wide} pixels wide in a window of {width}: {what}")
    if broken := tab.run(BROKEN):
        found.append(f"no picture at {broken}")
    return found


def look_at(site: Path, pictures: Path, asked: list[str]) -> list[str]:
    """Everything that is wrong with the pages asked for."""
    wrong: list[str] = []
    pages = names(site, asked)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        served(site) as root,
        browser(Path(profile), "about:blank") as tab,
    ):
        for page, size, theme in product(pages, SIZES, ("light", "dark")):
            picture = pictures / f"{page}-{size}-{theme}.png"
            found = look(tab, f"{root}/{page}.html", size, theme, picture)
            wrong += [f"{page}, {size}, {theme}: {each}" for each in found]
    print(f"{len(pages)} pages, {len(SIZES) * 2} pictures of each in {pictures}")
    return wrong


def main() -> int:
    """Look; 1 if anything is wrong."""
    if not FOUND:
        sys.exit("no Chromium or Chrome is installed")
    if not (SITE / "index.html").is_file():
        sys.exit(f"{SITE}: no site; `nox -s docs` builds it")
    wrong = look_at(SITE, PICTURES, sys.argv[1:])
    print(*wrong, sep="\n", end="\n" * bool(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
