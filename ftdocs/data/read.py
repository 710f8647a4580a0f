"""Read the rows of a data file, one at a time; each failure names the file, the row and the mend."""

import csv
import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ftdocs.errors import InputError

Row = dict[str, Any]
DOCUMENTS = (".md", ".rst", ".txt", ".html", ".pdf", ".docx", ".ipynb")


def read_rows(path: Path | str) -> Iterator[Row]:
    """Yield the rows of a JSONL, JSON, CSV, TSV or Parquet file, or of a saved Hugging Face dataset.

    Each row is a dict of the file's columns plus ``"row"``, its number counted from 1: the line in
    JSONL, the record elsewhere (a CSV header is not a record). Text is UTF-8, a byte-order mark is
    accepted. Raises :class:`InputError` for whatever cannot be read, and for a source without rows.
    """
    path = Path(path)
    found = False
    for row in reader(path)(path):
        found = True
        yield row
    if not found:
        raise InputError(f"{path}: no rows in it; a data file needs at least one")


def reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    """What reads a file or folder of this kind.

    Raises:
        InputError: there is none (the nearest name is suggested), or its kind is not known.
    """
    if not path.exists():
        near = nearest(path)
        mend = f"did you mean {near}?" if near else "check the path"
        raise InputError(f"{path}: no such file or folder; {mend}")
    if path.is_dir():
        return _folder_reader(path)
    ending = path.suffix.lower()
    if ending in READERS:
        return READERS[ending]
    if ending in (".yaml", ".yml"):
        raise InputError(
            f"{path}: is a recipe, not data; give the data file, and train with: ftdocs train {path}"
        )
    if ending in DOCUMENTS:
        raise InputError(f"{path}: is one document ({ending}), and some have to be held out; "
                         f"put it into a folder with others, and give the folder")  # fmt: skip
    raise InputError(
        f"{path}: cannot read {ending or 'a file without an ending'}; these work: {', '.join(READERS)}"
    )


def nearest(path: Path) -> Path | None:
    """The data file or folder beside ``path`` whose name is very like it, whatever the ending."""
    others = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    stems = {other.stem: other for other in others if other.is_dir() or other.suffix.lower() in READERS}
    near = difflib.get_close_matches(path.stem, stems, n=1)
    return stems[near[0]] if near else None


def is_dataset(path: Path) -> bool:
    """Whether a folder is what a Hugging Face dataset's ``save_to_disk`` wrote."""
    return any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))


def is_documents(path: Path) -> bool:
    """Whether a path is a folder of documents."""
    return (
        path.is_dir()
        and not is_dataset(path)
        and any(file.suffix.lower() in DOCUMENTS and not _hidden(file, path) for file in path.rglob("*"))
    )


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def read_documents(
    path: Path, format: str | None = None, report: dict[str, Any] | None = None
) -> Iterator[Row]:
    """The rows of a folder of documents, as :func:`ftdocs.data.folder.folder_rows` makes them."""
    from ftdocs.data.folder import folder_rows  # here, as other data need no packages that read documents

    return folder_rows(path, format, report)


def _folder_reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    if is_dataset(path):
        return read_dataset
    if is_documents(path):
        return read_documents
    raise InputError(
        f"{path}: a folder without documents ({', '.join(DOCUMENTS)}), and not a saved Hugging Face dataset; "
        f"put some into it, or name one file ({', '.join(READERS)})"
    )


def read_lines(path: Path) -> Iterator[str]:
    """Yield a file's lines as text, line ends kept; the first byte that is not UTF-8 is named."""
    start = 0  # byte position of the line in the file
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield _decode(path, line, number, start)
                start += len(line)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error


def _decode(path: Path, line: bytes, number: int, start: int) -> str:
    if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: encoded as UTF-16, not UTF-8; convert it: {_iconv(path, 'utf-16')}")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at position {start + error.start} "
            f"of the file); if it is Windows text, convert it: {_iconv(path, 'cp1252')}"
        ) from error
    if "\0" in text:
        raise InputError(
            f"{path}, line {number}: a NUL byte; the file is damaged or not text, export it again"
        )
    return text


def _iconv(path: Path, encoding: str) -> str:
    return f"iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}"


def _as_row(path: Path, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise InputError(
            f"{path}, row {number}: a row must be an object with named fields, not {_kind(value)}"
        )
    return {**value, "row": number}


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line; blank lines are passed over but counted."""
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, row {number}: not valid JSON ({error}); mend or delete this line"
                ) from error
            yield _as_row(path, number, value)


def read_json(path: Path) -> Iterator[Row]:
    """An array of objects, or an object whose ``data`` is one; decoded row by row to number a broken one."""
    text = "".join(read_lines(path)).strip()
    if text.startswith("{"):
        yield from _json_data(path, text)
        return
    if text and not text.startswith("["):
        raise InputError(
            f'{path}: not a JSON array of objects; write [{{"text": "…"}}, …] or one object a line as .jsonl'
        )
    decoder, position, number = json.JSONDecoder(), 1, 0
    while text:
        position = _skip(text, position, " \t\r\n")
        if number == 0 and text[position:] == "]":
            return
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, row {number}: not valid JSON ({error}); mend this object") from error
        yield _as_row(path, number, value)
        position = _skip(text, position, " \t\r\n")
        if text[position:] == "]":
            return
        if text[position : position + 1] != ",":
            raise InputError(
                f"{path}, row {number}: neither a comma nor the closing ] after this row; mend it there"
            )
        position += 1


def _json_data(path: Path, text: str) -> Iterator[Row]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = (
            "one object a line? then name the file .jsonl" if "Extra data" in str(error) else "mend it there"
        )
        raise InputError(f"{path}: not valid JSON ({error}); {hint}") from error
    if not isinstance(value.get("data"), list):
        raise InputError(
            f"{path}: one object without a `data` list; write an array of objects: [{{…}}, {{…}}]"
        )
    for number, row in enumerate(value["data"], 1):
        yield _as_row(path, number, row)


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def read_csv(path: Path) -> Iterator[Row]:
    """Comma-separated (or, for .tsv, tab-separated) records under a header line; every value is text."""
    csv.field_size_limit(2**31 - 1)  # the default refuses a document of more than 128 KiB
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    records = _csv_records(path, csv.reader(read_lines(path), delimiter=delimiter, strict=True))
    header = [name.strip() for name in next(records, [])]
    if len(set(header)) < len(header) or "" in header:
        raise InputError(
            f"{path}: the header line {header} has an empty or repeated name; name every column once"
        )
    if len(header) == 1 and ";" in header[0]:
        raise InputError(
            f"{path}: columns separated by semicolons; save it with commas, or with tabs as .tsv"
        )
    for number, record in enumerate(records, 1):
        if len(record) != len(header):
            raise InputError(
                f"{path}, row {number}: {len(record)} fields where the header has {len(header)}; "
                f"put text that holds a separator or a line break in double quotes"
            )
        yield {**dict(zip(header, record, strict=True)), "row": number}


def _csv_records(path: Path, records: Iterable[list[str]]) -> Iterator[list[str]]:
    number = -1
    try:
        for record in records:
            if record:  # a blank line is an empty record
                number += 1
                yield record
    except csv.Error as error:
        where = f"row {number + 1}" if number >= 0 else "header line"
        raise InputError(f"{path}, {where}: broken CSV ({error}); check the double quotes there") from error


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, read a batch of rows at a time."""
    import pyarrow.parquet  # here, as other kinds of file do not need it

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield {**row, "row": number}
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path}, after row {number}: damaged, or not a Parquet file ({error}); write it again"
        ) from error


def read_dataset(path: Path) -> Iterator[Row]:
    """A dataset that ``save_to_disk`` wrote, or the ``train`` split of a dictionary of them."""
    import datasets
    import pyarrow

    try:
        loaded = datasets.load_from_disk(str(path))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a dataset that save_to_disk wrote ({error}); save it again") from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise InputError(
                f"{path}: no `train` split (there are: {', '.join(loaded)}); name one split's folder"
            )
        loaded = loaded["train"]
    classes = {name: kind for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}
    for number, row in enumerate(loaded, 1):
        named = {name: kind.int2str(row[name]) for name, kind in classes.items() if row[name] is not None}
        yield {**row, **named, "row": number}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
