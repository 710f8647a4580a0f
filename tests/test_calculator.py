"""The calculator on the page *Will it fit?*, in a real browser: the count, the form, its address, keys and width."""

import json
import os
import random
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import browser
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs/_ext"))
import calculator  # noqa: E402

from ftdocs import memory, plan, shapes  # noqa: E402
from ftdocs.errors import InputError  # noqa: E402

# GitHub's Linux runners have Chrome: there it is missing by mistake alone.
PROMISED = sys.platform == "linux" and "GITHUB_ACTIONS" in os.environ
needs_browser = pytest.mark.skipif(
    browser.FOUND is None and not PROMISED, reason="no Chromium or Chrome is installed"
)
PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="found"></pre>
<script>{data}</script><script>{planner}</script><script>
const found = SETTINGS.map(([model, s]) => {{
  const {{ peak, moments, resting }} = planner.need(PLANNER.models[model], s);
  return [peak.name, peak.total, resting, moments.map((moment) => moment.total)];
}});
document.getElementById("found").textContent = JSON.stringify(found);
</script>"""


MODEL, GPU = "meta-llama/Llama-3.1-8B", "A10G-24GB"
FORM = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="book.css"><body>{form}<script src="planner-data.js"></script>
<script src="planner.js"></script><script src="calculator.js"></script>"""
SHOWN = """(() => {
  const out = document.querySelector("#calculator output"), read = (tag) => [...out.querySelectorAll(tag)];
  const [peak] = read("strong"), names = read("dt"), sizes = read("dd");
  return { peak: peak ? peak.textContent : "", lines: read("p").map((line) => line.textContent),
    parts: names.map((name, i) => [name.textContent, sizes[i].textContent]) };
})()"""


@pytest.mark.skipif(not PROMISED, reason="elsewhere the tests that need a browser are skipped without one")
def test_a_runner_that_promises_a_browser_has_one():
    assert browser.FOUND, "a GitHub runner without Chrome: nothing here would be tested"


def random_settings(count: int) -> list[tuple[str, memory.Setting]]:
    """Models of the catalogue with settings that the planner takes."""
    draw, found = random.Random(0), []
    models = list(shapes.catalogue())
    while len(found) < count:
        gpus = draw.choice([1, 1, 2, 3, 8])
        chosen = {
            **{name: draw.choice(kinds) for name, kinds in memory.CHOICES.items()},
            **{
                name: draw.random() < 0.4
                for name in (
                    "checkpointing",
                    "master_weights",
                    "fused_loss",
                    "cpu_offload",
                    "sync_each_batch",
                )
            },
            "batch_size": draw.choice([1, 2, 3, 7, 16]),
            "accumulation": draw.choice([1, 1, 4]),
            "seq_len": draw.choice([1, 100, 512, 2048, 8192]),
            "rank": draw.choice([1, 8, 64]),
            "gpus": gpus,
        }
        try:
            found.append((draw.choice(models), memory.Setting(**chosen)))
        except InputError:
            continue
    return found


@needs_browser
def test_the_page_counts_the_same_bytes_as_python(tmp_path):
    settings = random_settings(500)
    asked = [
        [model, {key: getattr(each, key) for key in memory.Setting.__dataclass_fields__}]
        for model, each in settings
    ]
    data = calculator.script() + f"const SETTINGS = {json.dumps(asked)};"
    planner = (ROOT / "docs/_static/planner.js").read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(PAGE.format(data=data, planner=planner), encoding="utf-8")
    done = subprocess.run(
        [str(browser.FOUND), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    shown = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert shown and shown[1], done.stderr[-2000:]
    by_browser = json.loads(shown[1].replace("&gt;", ">").replace("&amp;", "&"))
    assert len(by_browser) == 500
    for (model, setting), (name, total, resting, moments) in zip(settings, by_browser, strict=True):
        need = memory.need(shapes.find(model), setting)
        where = f"{model}, {setting}"
        assert [moment.total for moment in need.moments] == moments, where
        assert (need.peak.name, need.peak.total, need.resting_bytes) == (name, total, resting), where


def test_the_form_offers_what_the_planner_knows():
    form = calculator.form()
    for name, (_, values, chosen) in calculator.CHOICES.items():
        assert f'name="{name}"' in form and chosen in values
        assert set(values) <= set(memory.CHOICES[name])
    for name in (*calculator.NUMBERS, *calculator.SWITCHES):
        assert name in memory.Setting.__dataclass_fields__ and f'name="{name}"' in form
    assert form.count("<label") == form.count("</label>") == len(re.findall(r"<(?:select|input)", form))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the real form with its scripts and its style, as the directive puts them on a page."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("book.css", "planner.js", "calculator.js"):
        (folder / name).write_bytes((ROOT / "docs/_static" / name).read_bytes())
    (folder / calculator.DATA).write_text(calculator.script(), encoding="utf-8")
    (folder / "page.html").write_text(FORM.format(form=calculator.form()), encoding="utf-8")
    handler = partial(Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/page.html"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a line in the log for each."""

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture(scope="module")
def tab(site, tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile"), site) as tab:
        yield tab


def address(site: str, **asked: str | int) -> str:
    """The form's own way to write a setting into the address."""
    as_form = {key: str(value).lower() if isinstance(value, bool) else value for key, value in asked.items()}
    return f"{site}?{urlencode(as_form)}"


def expected(model: str, gpu: str, setting: memory.Setting) -> dict:
    """What the page has to show, from Python."""
    need, room = memory.need(shapes.find(model), setting), plan.gpu_bytes(gpu)
    low, high = plan.at_least_and_most(need)
    verdict = "it fits" if plan.fits(need, room) else "it may just fit" if low <= room else "it does not fit"
    line = (
        f"With CUDA's own share and up to a tenth for the allocator's gaps a GPU may need {gb(low)} to {gb(high)}:"
        f" {verdict} on {gpu} ({gb(room)}). Software that keeps more held up to {plan.HELD} times the count,"
        f" {gb(need.peak.total * plan.HELD + plan.CONTEXT)}: measure the first step."
        f" Between steps it rests at {gb(need.resting_bytes)}."
    )
    parts = [[name, gb(size)] for name, size in need.peak.parts.items() if size]
    return {"peak": f"{gb(need.peak.total)} at {need.peak.name}", "lines": [line], "parts": parts}


def opened_with(**changed) -> memory.Setting:
    """The form as it opens, but for what is given."""
    opened: dict[str, object] = {name: chosen for name, (*_, chosen) in calculator.CHOICES.items()}
    opened |= {
        name: value
        for names in (calculator.NUMBERS, calculator.SWITCHES)
        for name, (_, value) in names.items()
    }
    return memory.Setting(**{**opened, **changed})


def gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def drawn(count: int) -> list[dict]:
    """What a reader may ask of the form, possible or not."""
    draw = random.Random(1)
    return [
        {
            "model": draw.choice(list(shapes.catalogue())),
            "gpu": draw.choice(list(shapes.catalogue("gpus"))),
            **{name: draw.choice(values) for name, (_, values, _) in calculator.CHOICES.items()},
            **{name: draw.random() < 0.4 for name in calculator.SWITCHES},
            "batch_size": draw.choice([1, 3, 16]),
            "accumulation": draw.choice([1, 4]),
            "seq_len": draw.choice([100, 512, 2048]),
            "rank": draw.choice([1, 8, 64, 1024]),
            "gpus": draw.choice([0, 1, 1, 1, 1, 1, 2, 8]),
        }
        for _ in range(count)
    ]


@needs_browser
def test_an_address_shows_what_python_counts_and_refuses_what_python_refuses(site, tab):
    counted = refused = 0
    for asked in drawn(120):
        tab.open(address(site, **asked))
        shown = tab.run(SHOWN)
        model, gpu = asked.pop("model"), asked.pop("gpu")
        try:
            setting = memory.Setting(**asked)
            plan.check(shapes.find(model), setting, gpu)
        except InputError:
            refused += 1
            assert not shown["peak"] and len(shown["lines"]) == 1, (model, gpu, asked, shown)
        else:
            counted += 1
            assert shown == expected(model, gpu, setting), (model, gpu, asked)
    assert counted > 25 and refused > 15


@needs_browser
@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"method": "magic"}, "method: the address says magic, which is none of full, lora, qlora."),
        (
            {"checkpointing": "perhaps"},
            "checkpointing: the address says perhaps, which is none of true, false.",
        ),
        ({"model": "<b>"}, "model: the address says <b>, which is none of "),
        ({"seq_len": "long"}, "seq_len: give at least 1."),
        ({"batch_size": "-3"}, "batch_size: give at least 1."),
    ],
)
def test_a_bad_address_is_refused_with_one_line_and_the_form_goes_on(site, tab, asked, line):
    tab.open(address(site, **asked))
    shown = tab.run(SHOWN)
    assert not shown["peak"] and len(shown["lines"]) == 1 and shown["lines"][0].startswith(line)
    assert tab.run("document.querySelector('#calculator b')") is None
    for name in ("seq_len", "batch_size"):
        write(tab, name, "512")
    setting = opened_with(seq_len=512, batch_size=512)
    assert tab.run(SHOWN) == expected(MODEL, GPU, setting)


@needs_browser
def test_an_address_with_other_names_in_it_is_none_of_the_forms_business(site, tab):
    tab.open(address(site, highlight="memory", rank="16"))
    assert tab.run(SHOWN) == expected(MODEL, GPU, opened_with(rank=16))


def write(tab, name: str, text: str) -> None:
    """Select a field's text and type over it."""
    tab.run(f"document.querySelector('[name={name}]').focus(); document.activeElement.select()")
    for character in text:
        tab.press(character)


def asked_by(tab) -> dict[str, str]:
    return {key: value for key, (value,) in parse_qs(urlsplit(tab.run("location.href")).query).items()}


@needs_browser
def test_the_keyboard_reaches_each_field_and_address_and_figures_follow(site, tab):
    tab.open(site)
    assert asked_by(tab) == {}  # nothing was chosen yet
    assert tab.run(SHOWN) == expected(MODEL, GPU, opened_with())
    names, changed = [], {}
    keys = {"method": ["ArrowDown"], "seq_len": ["ArrowDown"], "batch_size": ["ArrowUp", "ArrowUp"],
            "checkpointing": ["Space"], "gpu": ["ArrowDown"]}  # fmt: skip
    for _ in tab.run("[...document.querySelectorAll('#calculator [name]')].map((field) => field.name)"):
        tab.press("Tab")
        names.append(tab.run("document.activeElement.name"))
        before = tab.run("document.activeElement.value")
        for key in keys.get(names[-1], []):
            tab.press(key)
        if names[-1] in keys:
            field = "document.activeElement"
            now = tab.run(f"{field}.type === 'checkbox' ? String({field}.checked) : {field}.value")
            assert now != before
            changed[names[-1]] = now
            assert asked_by(tab)[names[-1]] == now
    assert names == ["model", *calculator.CHOICES, *calculator.NUMBERS, "gpu", *calculator.SWITCHES]
    assert changed["method"] == "qlora" and changed["seq_len"] == "2047" and changed["batch_size"] == "3"
    assert changed["checkpointing"] == "false"
    setting = opened_with(method="qlora", seq_len=2047, batch_size=3, checkpointing=False)
    by_keys = tab.run(SHOWN)
    assert by_keys == expected(MODEL, changed["gpu"], setting)
    tab.open(tab.run("location.href"))  # as somebody who was sent it
    assert tab.run(SHOWN) == by_keys


@needs_browser
def test_nothing_is_wider_than_a_phone(site, tab):
    tab.size(390, 844, phone=True)
    try:
        for asked in (
            {},
            {"model": "gpt2", "method": "full", "gpus": 8, "sharding": "zero3"},
            {"method": "magic"},
        ):
            tab.open(address(site, **asked))
            assert tab.run("document.documentElement.scrollWidth") <= 390, asked
            right = (
                "[...document.querySelectorAll('#calculator *')].map((e) => e.getBoundingClientRect().right)"
            )
            assert max(tab.run(right)) <= 390, asked
            assert tab.run("document.querySelector('[name=model]').getBoundingClientRect().width") > 200
    finally:
        tab.call("Emulation.clearDeviceMetricsOverride")
