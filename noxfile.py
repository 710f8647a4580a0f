"""Everything that is done to this repository, by name: ``nox -l`` lists it, ``nox -s docs`` builds the book.

All heavy sessions share one environment, ``.nox/book``, so that torch and the models are installed once. It is
made with plain pip from ``requirements/``, and made anew when those files, the package's dependencies or Python change.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).parent
CONSTRAINTS = "requirements/constraints.txt"
ASSETS = "requirements/assets.txt"
ENVIRONMENT = ROOT / ".nox" / "book"
STAMP = ENVIRONMENT / "installed.json"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PROFILES = ("smoke", "cpu", "gpu")
HEADER = """\
# Every version the book is built with, for all platforms (markers included).
# Made by `nox -s pins`; change pyproject.toml, run it, and read the difference before you commit it.
"""

nox.options.sessions = ["lint", "docs", "tests"]
QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"}


def wanted() -> str:
    """What the environment has to be made of, as one checksum: a change here means a new environment."""
    project = nox.project.load_toml("pyproject.toml")
    parts = [
        json.dumps([project["build-system"], project["project"]], sort_keys=True),
        (ROOT / CONSTRAINTS).read_text(encoding="utf-8"),
        (ROOT / ASSETS).read_text(encoding="utf-8"),
        sys.version,
        str(ROOT),  # scripts hold the folder they were installed in
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def prepare(session: nox.Session) -> None:
    """Make the shared environment anew unless its stamp fits; that comes last, so a half-made one never does."""
    digest = wanted()
    if STAMP.exists() and json.loads(STAMP.read_text())["digest"] == digest:
        return
    if sys.version_info < (3, 11):  # noqa: UP036 - nox itself may have been installed with an older one
        session.error("Python 3.11 or newer is needed: install nox with a newer Python")
    if Path(sys.prefix) == ENVIRONMENT:  # nox lies in it too, and would take away what it stands on
        session.error(
            f"this nox belongs to the environment that is to be made anew; deactivate {ENVIRONMENT} first"
        )
    started = time.monotonic()
    session.run(sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(ENVIRONMENT), external=True)
    # Plain pip and never uv, which takes torch's CUDA build from the index where pip is pointed at another one.
    pip = [str(PYTHON), *"-m pip install --quiet --progress-bar off --disable-pip-version-check".split()]
    session.run(*pip, "--upgrade", "pip>=25.1", external=True)
    # Not compiled: Python does that at the first import, for the part of these packages that is imported at all.
    session.run(*pip, "--no-compile", "-c", CONSTRAINTS, "-e", ".[docs,test,lint]", external=True)
    session.run(*pip, "--no-compile", "--no-deps", "--require-hashes", "-r", ASSETS, external=True)
    seconds = round(time.monotonic() - started, 1)
    STAMP.write_text(json.dumps({"digest": digest, "seconds": seconds}))
    session.log(f"environment made in {seconds:.0f} s")


def run(session: nox.Session, *command: str | Path, **env: str) -> None:
    """Run a Python command line (``-m pytest …``) in the shared environment, which is made first if need be."""
    prepare(session)
    path = os.pathsep.join([str(PYTHON.parent), os.environ.get("PATH", "")])
    # Set in many containers, and then each process would compile all it imports.
    compiled = {"PYTHONDONTWRITEBYTECODE": None}
    inside = {"PATH": path, "VIRTUAL_ENV": str(ENVIRONMENT), "PYTHONPATH": None, **compiled, **QUIET, **env}
    session.run(str(PYTHON), *map(str, command), env=inside, external=True)


@nox.session(venv_backend="none")
def environment(session: nox.Session) -> None:
    """Make the shared environment and say what this machine can do with it."""
    run(session, "-m", "ftdocs.cli", "doctor")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Format, style, spelling, types, schemas, and what must agree across the repository."""
    prepare(session)
    schema = ("-m", "check_jsonschema", "--builtin-schema")
    commands: list[tuple[str | Path, ...]] = [
        ("-m", "ruff", "format", "--check", "--quiet", "."),
        ("-m", "ruff", "check", "."),
        ("-m", "codespell_lib"),
        ("-m", "pyrefly", "check", "--output-format=min-text", "--summary=none"),
        (*schema, "vendor.github-workflows", *sorted((ROOT / ".github/workflows").glob("*.yml"))),
        (*schema, "vendor.readthedocs", ".readthedocs.yaml"),
        ("-m", "pytest", "-q", "tests/test_repository.py"),
        ("docs/_ext/readme.py", "--check"),
    ]
    failed = 0
    for command in commands:  # all of them, so that one look shows all there is to mend
        try:
            run(session, *command)
        except CommandFailed:
            failed += 1
    if failed:
        session.error(
            f"{failed} of {len(commands)} checks failed; `ruff format .` and `ruff check --fix .` may help"
        )


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Run every page and build the book into docs/_build/html (-- smoke | cpu | gpu; else by the hardware)."""
    if set(session.posargs) - set(PROFILES) or len(session.posargs) > 1:
        session.error(f"nox -s docs -- takes one of {', '.join(PROFILES)}")
    profile = ["--profile", *session.posargs] if session.posargs else []
    # One GPU, as a page's commands train with one process; several are a page's own business.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    run(session, "docs/_ext/build.py", *profile, CUDA_VISIBLE_DEVICES=gpu)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Test the package and every snippet of the book, small (-- pytest's own options)."""
    # Two workers share the cores: more threads than cores, and each waits for the other.
    small = {"FTDOCS_PROFILE": "smoke", "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
    # Files are handed out in the order of tests/conftest.py: the slowest first, so that no worker waits at the end.
    options = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    options += ["--durations", "15", "--junitxml", "docs/_build/tests.xml"]
    run(session, "-m", "pytest", *options, *session.posargs, **small)


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """Kill a run of each engine fifty times, in the middle of a save too, and damage what it leaves."""
    options = ["-q", "-s", "--kills", "50", "--timeout", "3600"]
    run(session, "-m", "pytest", *options, "tests/test_faults.py", *session.posargs)


@nox.session(venv_backend="none")
def golden(session: nox.Session) -> None:
    """Record the golden curves of tests/golden anew, after a change that was meant to move them."""
    run(session, "-m", "pytest", "-q", "tests/test_golden.py", "--golden", *session.posargs)


@nox.session(venv_backend="none")
def linkcheck(session: nox.Session) -> None:
    """Follow every external link of the book; this one needs the network."""
    run(session, "docs/_ext/build.py", "--execute-only", "--profile", "smoke")
    run(session, "-m", "sphinx", "-b", "linkcheck", "-q", "docs", "docs/_build/linkcheck")


@nox.session(venv_backend="none")
def look(session: nox.Session) -> None:
    """Open the built site in Chromium, desktop and phone, light and dark, and keep pictures (-- PAGE …; else all)."""
    run(session, "tests/look.py", *session.posargs)


@nox.session(reuse_venv=True)
def labelstudio(session: nox.Session) -> None:
    """Start a real Label Studio (1 GB), import pre-labels, annotate, export, and read the exports."""
    session.install("--quiet", "label-studio==1.23.0")
    run(session, "tests/label_studio.py", Path(session.bin) / "label-studio")


@nox.session(reuse_venv=True)
def skypilot(session: nox.Session) -> None:
    """Let SkyPilot's own class read the book's task file (-- --write keeps its schema anew, for the page)."""
    session.install("--quiet", "skypilot==0.14.1")
    session.run("python", "tests/sky_task.py", *session.posargs)


@nox.session(venv_backend="none")
def kuberay(session: nox.Session) -> None:
    """Let the definition that KubeRay publishes read the book's RayJob (-- CRD.yaml, downloaded or a cluster's)."""
    run(session, "tests/kuberay_job.py", *session.posargs)


@nox.session(reuse_venv=True)
def deepspeed(session: nox.Session) -> None:
    """Let DeepSpeed's own class read the book's files for ZeRO-2 and ZeRO-3."""
    session.install("--quiet", "-c", CONSTRAINTS, "torch")
    session.install("--quiet", "deepspeed==0.19.8", env={"DS_BUILD_OPS": "0"})
    session.run("python", "tests/deepspeed_config.py", env={"DS_ACCELERATOR": "cpu"})


@nox.session(venv_backend="none")
def live(session: nox.Session) -> None:
    """Serve the book in smoke size and rebuild what is edited (-- sphinx-autobuild's own options)."""
    pages = f'"{PYTHON}" docs/_ext/build.py --execute-only --profile smoke'
    options = ["--pre-build", pages, "--watch", "ftdocs", "--ignore", "docs/_build/*"]
    run(session, "-m", "sphinx_autobuild", *options, *session.posargs, "docs", "docs/_build/live")


@nox.session(venv_backend="none")
def lab(session: nox.Session) -> None:
    """Open the pages as notebooks in JupyterLab: right click a page, Open With, Notebook (jupytext)."""
    run(session, "-m", "jupyter", "lab", "docs", *session.posargs)


@nox.session(venv_backend="none")
def results(session: nox.Session) -> None:
    """Make recorded runs anew (-- NAME …; without a name, list them with how long each takes)."""
    run(session, "-m", "experiments", *session.posargs)


@nox.session(venv_backend="none")
def readme(session: nox.Session) -> None:
    """Write how long the last build and tests took into results/build.json and the README."""
    run(session, "docs/_ext/readme.py")


@nox.session(reuse_venv=True)
def pins(session: nox.Session) -> None:
    """Pin what pyproject.toml asks for, keeping today's versions (-- --upgrade, or --upgrade-package NAME)."""
    session.install("-c", CONSTRAINTS, "uv")
    options = ["--universal", "--python-version", "3.11", "--all-extras", "--no-header", "--no-annotate"]
    options += ["--no-emit-index-url", "--no-emit-find-links", "--quiet", "--output-file", CONSTRAINTS]
    session.run("uv", "pip", "compile", *options, *session.posargs, "pyproject.toml", silent=True)
    constraints = ROOT / CONSTRAINTS
    constraints.write_text(HEADER + constraints.read_text(encoding="utf-8"), encoding="utf-8")
