"""A reader's table of prices: the newest row counts, and what is wrong with a table is one line."""

import csv
import json
from datetime import date, timedelta

import pytest

from ftdocs.cli import main

PLANNED = "plan --model Llama-3.1-8B --method qlora --gpu L4-24GB --gpus 2 --tokens 1000000000 --json"
TODAY = date.today()
HEAD = "gpu,price,date,where\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(here, capsys, table: str | None, *options: str, code: int = 0) -> tuple[str, str]:
    """What the command prints with that table."""
    if table is not None:
        (here / "prices.csv").write_text(table)
    assert main([*PLANNED.split(), "--prices", "prices.csv", *options]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("name", ["L4-24GB", "l4"])
def test_the_newest_price_of_that_gpu_counts(here, capsys, name):
    days = [TODAY - timedelta(days=days) for days in (30, 2, 9)]
    rows = [f"L4-24GB,{price},{day},x\n" for price, day in zip((0.5, 0.8, 0.9), days, strict=True)]
    out, err = planned(here, capsys, HEAD + "".join(rows) + f"A10G-24GB,7,{TODAY},x\n", "--gpu", name)
    found = json.loads(out)["estimate"]
    assert (found["price"], found["price_date"]) == (0.8, str(days[1])) and not err
    assert found["cost"] == pytest.approx(found["hours"] * 0.8 * 2, rel=1e-3)


def test_an_old_price_is_said_to_be_old(here, capsys):
    old = TODAY - timedelta(days=91)
    _, err = planned(here, capsys, f"{HEAD}L4-24GB,0.8,{old},x\n")
    assert err == f"ftdocs: prices.csv: the price is of {old}, 91 days ago\n"


def test_people_read_the_day_too(here, capsys):
    (here / "prices.csv").write_text(f"{HEAD}L4-24GB,0.8,{TODAY},x\n")
    assert main([*PLANNED.removesuffix(" --json").split(), "--prices", "prices.csv"]) == 0
    assert f"price 0.8, price date {TODAY}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "--prices prices.csv: cannot be read (No such file or directory)"),
        ("", "prices.csv: no column gpu, price, date; it needs gpu, price, date"),
        ("gpu,price\nL4-24GB,1\n", "prices.csv: no column date"),
        (HEAD, "no price of L4-24GB; it has none"),
        (HEAD + "A10G-24GB,1,2026-11-02,x\n", "no price of L4-24GB; it has A10G-24GB"),
        (HEAD + "L4-24GB,$1,2026-11-02,x\n", "prices.csv, line 2: price '$1': give a number above 0"),
        (HEAD + "L4-24GB,nan,2026-11-02,x\n", "line 2: price 'nan'"),
        (HEAD + "L4-24GB,1,2026-11-02,x\nL4-24GB,2,soon,x\n", "line 3: date 'soon': give one such as"),
        (HEAD + "L4-24GB,1\n", "line 2: date None"),
        (f"{HEAD}L4-24GB,1,{TODAY + timedelta(days=2)},x\n", "is to come; give the day on which"),
        ("price,date,gpu\n1,2026-11-02\n", "no price of L4-24GB; it has none"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(here, capsys, table, message):
    out, err = planned(here, capsys, table, code=2)
    assert message in err and err.count("\n") == 1 and not out


def test_what_is_no_csv_file_is_one_line(here, capsys, request):
    limit = csv.field_size_limit(1000)  # of the whole process: reading documents raises it
    request.addfinalizer(lambda: csv.field_size_limit(limit))
    _, err = planned(here, capsys, HEAD + "L" * 2000, code=2)
    assert err == "ftdocs: --prices prices.csv: cannot be read (not a CSV file in UTF-8)\n"


def test_one_price_and_only_with_tokens(here, capsys):
    _, err = planned(here, capsys, HEAD, "--price", "1", code=2)
    assert "--price and --prices: give one of them" in err
    assert main("plan --model Llama-3.1-8B --gpu L4 --prices prices.csv".split()) == 2
    assert "--prices needs --tokens" in capsys.readouterr().err
