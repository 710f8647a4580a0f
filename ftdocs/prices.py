"""Prices of GPUs, from a table that its reader keeps: they change, and the package knows none."""

import csv
from datetime import date
from pathlib import Path

from ftdocs.errors import InputError
from ftdocs.plan import means

COLUMNS = ("gpu", "price", "date")
OLD = 90  # days


def price_of(table: Path, gpu: str) -> tuple[float, date]:
    """What a GPU and hour cost, and when they did: the newest row of the table for that GPU.

    Args:
        table: a CSV file with the columns gpu, price and date (2026-11-02); further ones are the reader's.
        gpu: a name such as A10G-24GB, or its beginning.

    Raises:
        InputError: no such file, a column or the GPU is missing, or a row's price or date is none; names the row.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{table}: no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
            rows = [(row["gpu"] or "", *_read(row, f"{table}, line {reader.line_num}")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a CSV file in UTF-8"
        raise InputError(f"--prices {table}: cannot be read ({reason})") from None
    found = [row[1:] for row in rows if means(gpu, row[0])]
    if not found:
        known = ", ".join(sorted({row[0] for row in rows})) or "none"
        raise InputError(f"{table}: no price of {gpu}; it has {known}")
    return max(found, key=lambda row: row[1])


def age(day: date) -> str:
    """What to say of a price that is older than :data:`OLD` days; "" of a newer one."""
    days = (date.today() - day).days
    return f"the price is of {day}, {days} days ago" if days > OLD else ""


def _read(row: dict[str, str], where: str) -> tuple[float, date]:
    """A row's price and date."""
    try:
        price = float(row["price"])
    except (TypeError, ValueError):
        price = 0.0
    if not 0 < price < float("inf"):
        raise InputError(f"{where}: price {row['price']!r}: give a number above 0, of one GPU and hour")
    try:
        day = date.fromisoformat(row["date"])
    except (TypeError, ValueError):
        raise InputError(f"{where}: date {row['date']!r}: give one such as 2026-11-02") from None
    if day > date.today():  # it would count as the newest for ever after
        raise InputError(f"{where}: date {day} is to come; give the day on which the price was read")
    return price, day
