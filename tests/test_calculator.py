"""The calculator on the page *Will it fit?*, in a real browser: the same bytes as Python, over 500 random settings."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs/_ext"))
import calculator  # noqa: E402

from ftdocs import memory, shapes  # noqa: E402
from ftdocs.errors import InputError  # noqa: E402

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="found"></pre>
<script>{data}</script><script>{planner}</script><script>
const found = SETTINGS.map(([model, s]) => {{
  const {{ peak, moments, resting }} = planner.need(PLANNER.models[model], s);
  return [peak.name, peak.total, resting, moments.map((moment) => moment.total)];
}});
document.getElementById("found").textContent = JSON.stringify(found);
</script>"""


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


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
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
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
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
