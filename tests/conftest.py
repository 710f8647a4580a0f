"""Fixtures for every test: a local hub, tiny repositories for it, and Python in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before any library reads them: commands run in this process are as quiet as on the command line.
from ftdocs.cli import quiet_libraries

quiet_libraries()
sys.path.insert(0, str(Path(__file__).parent))

import hub_server  # noqa: E402
import make_repositories  # noqa: E402

# The same examples each time: a change fails by what it changed. Others: --hypothesis-profile default.
settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="of a run, for each engine (tests/test_faults.py)")
    parser.addoption("--golden", action="store_true", help="record the golden curves (tests/test_golden.py)")


# What takes longest, longest first: whoever begins with a long file ends in time. Seconds need not be exact for that.
# Before all, the page that measures its process's resident memory: in one that has run much, freed gaps are filled.
SLOWEST = [
    "hardware.md",
    "test_search.py",
    "test_processes.py",
    "test_faults.py",
    "test_runs.py",
    "training.md",
    "pitfalls.md",
    "hyperparameters.md",
    "own-file.md",
    "README.md",
    "test_build.py",
]
SLOWEST += ["evaluate.md", "test_jobs.py", "test_compare.py", "test_app.py", "test_serve.py"]
SLOWEST += ["test_trl.py", "first-fine-tune.md", "test_golden.py", "test_engines.py", "test_assets.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file, the slowest files first; within a file nothing changes."""
    place = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(SLOWEST)))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "network: asks a package registry; skipped where none answers")


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    """An empty local hub; ``hub.add(id, folder, kind)`` serves a folder, ``hub.url`` is its endpoint."""
    server = hub_server.Hub()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_gpt2_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repositories.tiny_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def tiny_wikitext_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repositories.tiny_wikitext(tmp_path_factory.mktemp("wikitext"))


@pytest.fixture
def start_python(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """``start_python(code, *arguments, NAME=value, …)``: a Python process with its own caches.

    Its environment has no setting of the hub's or of ours but those given, so that the client is the
    real one, pointed at a server by ``HF_ENDPOINT`` and nothing else. ``FTDOCS_HOME`` and ``HF_HOME``
    are below the test's temporary folder.
    """

    def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "FTDOCS_", "TQDM_"))
        }
        own = {"FTDOCS_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf")}
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=kept | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run_python(start_python: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.CompletedProcess]:
    """Like ``start_python``, but waits for the end and returns a ``CompletedProcess``."""

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        with start_python(code, *arguments, **environment) as process:
            out, error = process.communicate(timeout=120)
            return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    return run
