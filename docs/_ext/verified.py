"""The ledger: what became of every fence, written beside the site as ``verified.json``, and what a GPU has run."""

import json
from dataclasses import asdict
from pathlib import Path

from execute import Book, Run, now

from ftdocs import files

FIELDS = ("page", "line", "language", "status", "seconds", "reason")


def ledger(book: Book, runs: list[Run]) -> dict[str, object]:
    """The whole book's ledger; ``versions`` are of everything that any page reaches.

    ``modified`` says that the files were not as in ``commit`` when the book was built, or when one of its pages ran.
    """
    versions = {name: version for run in runs for name, version in run.versions.items()}
    return {
        "commit": book.commit,
        "modified": book.modified or any(run.modified for run in runs),
        "built": now(),
        "device": book.device,
        "profile": book.profile,
        "versions": dict(sorted(versions.items())),
        "fences": [
            {field: getattr(fence, field) for field in FIELDS} for run in runs for fence in run.fences
        ],
    }


def write(book: Book, runs: list[Run], site: Path) -> None:
    """Write ``verified.json`` into the site."""
    files.write_atomic(site / "verified.json", json.dumps(ledger(book, runs), indent=1) + "\n")


def write_gpu(book: Book, runs: list[Run]) -> None:
    """Keep what this GPU's run showed in ``results/gpu.json``; it takes the pages' "not yet run" marks away."""
    kept = [
        asdict(run)
        for run in runs
        if run.profile == "gpu" and any(f.status == "executed" for f in run.fences)
    ]
    fields = ("page", "code", "ran", "device", "commit", "versions", "seconds", "peak_bytes", "figures")
    found = {"date": now(), "device": book.device, "commit": book.commit}
    found["pages"] = {run["page"]: {field: run[field] for field in fields[1:]} for run in kept}
    files.write_atomic(book.root / "results" / "gpu.json", json.dumps(found, indent=1) + "\n")


def on_gpu(root: Path) -> dict[str, dict]:
    """What a GPU has run so far, by page."""
    path = root / "results" / "gpu.json"
    return json.loads(path.read_text(encoding="utf-8"))["pages"] if path.is_file() else {}
