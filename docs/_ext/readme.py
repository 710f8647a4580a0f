"""Write how long the last build and tests took, and how much is downloaded, into results/build.json and the README.

``nox -s readme`` runs this after a build and the tests; ``--check`` only compares the README with the record.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "build.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: written by `nox -s readme` -->\n", "<!-- /measured -->\n"
CUDA = ("nvidia-", "cuda-", "triton")  # what torch's CUDA build brings with it


def main() -> None:
    """Record and write, or compare."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--check", action="store_true", help="fail if the README is not what the record says"
    )
    if not options.parse_args().check:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(measured(), indent=2) + "\n", encoding="utf-8")
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except FileNotFoundError:  # not measured yet, so the README must say nothing of it
        record = None
    before = README.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    after = head + BEGIN + (sentence(record) if record else "") + END + rest.partition(END)[2]
    if options.parse_args().check:
        if after != before:
            sys.exit("README.md does not say what results/build.json says: run `nox -s readme`")
    else:
        README.write_text(after, encoding="utf-8")


def measured() -> dict[str, Any]:
    """The last build's and tests' durations, this machine, and the sizes of what pip downloads."""
    from ftdocs import hardware  # imports torch, which comparing does without

    build = json.loads((ROOT / "docs/_build/build.json").read_text(encoding="utf-8"))
    environment = json.loads((ROOT / ".nox/book/installed.json").read_text(encoding="utf-8"))
    suite = ElementTree.parse(ROOT / "docs/_build/tests.xml").getroot().find("testsuite")
    if suite is None or int(suite.get("failures", 1)) or int(suite.get("errors", 1)):
        sys.exit("the last tests did not pass: run `nox -s tests`")
    if build["profile"] == "smoke" or not build["cold"]:
        sys.exit(
            "the last build was not one of every page in full size: remove docs/_build, run `nox -s docs`"
        )
    return {
        "command": "nox -s docs && nox -s tests",
        "commit": build["commit"],
        "built": build["built"],
        "profile": build["profile"],
        "device": hardware.device_name(),
        "versions": hardware.versions(),
        "matmul_gflops": hardware.report()["matmul_gflops"],
        "seconds": {
            "environment": environment["seconds"],
            "book": build["seconds"],
            "tests": round(float(suite.get("time", 0)), 1),
        },
        "tests": int(suite.get("tests", 0)),
        "download_bytes": downloads(),
    }


def downloads() -> dict[str, int]:
    """Bytes of the wheels that pip fetches on Linux x86-64 with Python 3.11, as the package index states them."""
    extras = [word for extra in ("docs", "test", "lint") for word in ("--extra", extra)]
    sizes = wheels("-c", "requirements/constraints.txt", *extras, "pyproject.toml")
    assets = sum(wheels("--no-deps", "requirements/assets.txt").values())
    torch = sizes.pop("torch")
    cuda = sum(size for name, size in sizes.items() if name.startswith(CUDA))
    rest = sum(sizes.values()) - cuda + assets
    found = {"assets": assets, "cuda": rest + torch + cuda}
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # the CPU build is another wheel: weigh it where pip gets it
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, "-c", "requirements/constraints.txt", "torch"], cwd=ROOT, check=True)
        (wheel,) = Path(folder).iterdir()
        if "+cpu" in wheel.name:
            found["cpu"] = rest + wheel.stat().st_size
    if "cpu" not in found and RECORD.exists():
        found["cpu"] = json.loads(RECORD.read_text(encoding="utf-8"))["download_bytes"]["cpu"]
    return found


def wheels(*requirements: str) -> dict[str, int]:
    """Size in bytes of the wheel (or source archive) of each package that these requirements resolve to."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        options = [
            "--format",
            "pylock.toml",
            "--python-version",
            "3.11",
            "--quiet",
            "--output-file",
            str(lock),
        ]
        options += ["--python-platform", "x86_64-manylinux_2_28"]
        command = [sys.executable, "-m", "uv", "pip", "compile", *options, *requirements]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    return {package["name"]: fitting(package)["size"] for package in packages}


def fitting(package: dict[str, Any]) -> dict[str, Any]:
    """The wheel of a package that CPython 3.11 takes, else its source archive."""
    for tags in ("cp311-cp311", "abi3", "py3-none", "none-any"):
        for wheel in package.get("wheels", []):
            if tags in wheel["url"] and ("x86_64" in wheel["url"] or "any.whl" in wheel["url"]):
                return wheel
    return package["sdist"]


def sentence(record: dict[str, Any]) -> str:
    """What the README says about a record, as Markdown lines."""
    day = datetime.fromisoformat(record["built"])
    seconds, size, speed = record["seconds"], record["download_bytes"], record["matmul_gflops"]
    return f"""\
Last measured on {day.day} {day:%B %Y} on {record["device"]}, which multiplies bf16 matrices at \
{speed["bfloat16"]} GFLOP/s and fp32 at
{speed["float32"]}, Python {record["versions"]["python"]}: {minutes(seconds["environment"])} for the environment, \
{minutes(seconds["book"])} for the book, {minutes(seconds["tests"])} for
{record["tests"]} tests. What is downloaded, on Linux x86-64: {size["cpu"] / 1e9:.1f} GB with torch's CPU build, \
{size["cuda"] / 1e9:.1f} GB with its CUDA build;
models and data are {size["assets"] / 1e9:.1f} GB of it.
"""


def minutes(seconds: float) -> str:
    """``3 min 5 s``."""
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
