"""A run from a user's own file: every format trains, evaluates, is reused, resumed, or refused with one line."""

import io
import json
import logging
import math
import shutil
import signal
from pathlib import Path

import datasets
import pandas
import pytest
import torch
import transformers
from forked import Command, Two
from peft import PeftModel
from small_tokenizer import small_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from ftdocs import checkpoints, files, progress, runs
from ftdocs import train as training
from ftdocs.cli import main
from ftdocs.errors import InputError
from ftdocs.job import learning_rate, steps
from ftdocs.models import load_run
from ftdocs.progress import Diverged
from ftdocs.recipe import Recipe
from ftdocs.train import train

WORDS = "river stone cloud amber falcon meadow copper lantern harbour willow saffron thunder".split()


def rows(format: str, count: int = 40) -> list[dict]:
    """Different rows of one format, with nothing repeated."""
    made = []
    for number in range(count):
        first, second = WORDS[number % 12], WORDS[(number * 5 + number // 12 + 1) % 12]
        question, answer = f"What follows {first} {number}?", f"The {second} follows {first} {number}."
        made.append(
            {
                "messages": {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                },
                "prompt": {"prompt": question, "completion": answer},
                "instruction": {"instruction": question, "input": "", "output": answer},
                "text": {"text": f"{question} {answer} " * 3},
                "label": {"text": f"{question} {answer}", "label": ["calm", "storm"][number % 2]},
            }[format]
        )
    return made


def write(path: Path, content: list[dict]) -> Path:
    """The rows as a file of the kind that the ending names."""
    frame = pandas.DataFrame(content)
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        case ".json":
            path.write_text(json.dumps(content))
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            datasets.Dataset.from_list(content).save_to_disk(path)
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A LLaMA of random weights with SmolLM2's template, for what does not depend on how good a model is."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
                         eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_file(folder: Path, data: Path, model: object = "smollm2-135m-instruct", **train: object) -> Path:
    """A recipe that takes a second or two: a few short steps."""
    settings = {"max_steps": 2, "batch_size": 2, "seq_len": 64, "learning_rate": 1e-3, **train}
    path = folder / "job.yaml"
    path.write_text(
        json.dumps(
            {
                "model": str(model),
                "data": {"path": data.name},
                "train": settings,
                "method": {"name": "lora", "rank": 2},
            }
        )
    )
    return path


@pytest.fixture
def job(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for a small file of prompts and a tiny model, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return recipe_file(tmp_path, write(tmp_path / "faq.jsonl", rows("prompt")), tiny_llama)


def run(*arguments: str) -> int:
    """The command line, in this process."""
    return main([str(argument) for argument in arguments])


def use(card: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the card's Python prints; Transformers may have nothing to warn of, such as a missing padding token."""
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.replace("\n\n", "\n").splitlines()) <= 8
    told = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(told)
    logger.setLevel(logging.WARNING)
    capsys.readouterr()
    try:
        exec(compile(code, "README.md", "exec"), {})
    finally:
        logger.removeHandler(told)
        logger.setLevel(level)
    # A base model has no classification head: Transformers reports it before the adapter brings one.
    assert told.stream.getvalue() == "" or "score.weight | MISSING" in told.stream.getvalue()
    return capsys.readouterr().out


def last_json(text: str) -> dict:
    """The one JSON object that standard output must consist of."""
    assert text.count("\n") == 1, text
    return json.loads(text)


REAL = {("messages", ".jsonl"), ("label", ".csv")}  # with the model that `ftdocs new` chooses


@pytest.mark.parametrize(
    ("format", "ending"),
    [
        ("messages", ".jsonl"),
        ("prompt", ".csv"),
        ("instruction", ".json"),
        ("text", ".parquet"),
        ("label", ".csv"),
        ("messages", ""),
        ("prompt", ".parquet"),
    ],
)
def test_a_users_file_from_recipe_to_figures(format, ending, tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    if (format, ending) not in REAL:
        monkeypatch.setenv("FTDOCS_MODEL", str(tiny_llama))
    write(tmp_path / f"mine{ending}", rows(format))
    assert run("new", f"mine{ending}", "--json") == 0
    assert last_json(capsys.readouterr().out) == {"recipe": "mine.yaml"}
    assert run("data", "inspect", f"mine{ending}", "--recipe", "mine.yaml", "--json") == 0
    assert last_json(capsys.readouterr().out)["format"] == format
    assert run("train", "mine.yaml", "--json") == 0
    result = last_json(capsys.readouterr().out)
    assert set(result) == {"run", "steps", "train_tokens", "train_seconds", "loss"}
    assert result["run"] == "runs/mine" and result["steps"] == 2 and math.isfinite(result["loss"])
    assert result["train_tokens"] > 0 and result["train_seconds"] > 0

    folder = Path("runs/mine")
    assert (folder / ("model" if format == "label" else "adapter")).is_dir()
    assert all(
        (folder / name).is_file()
        for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "README.md")
    )
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
    steps = [row for row in runs.read_metrics(folder) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert set(steps[0]) >= {"step", "loss", "learning_rate", "tokens", "seconds", "time"}
    assert steps[-1]["tokens"] == result["train_tokens"]
    validations = [row["step"] for row in runs.read_metrics(folder) if "eval_loss" in row]
    assert validations == [0, 2]

    assert run("evaluate", folder, "--json") == 0
    out, err = capsys.readouterr()
    outcome = last_json(out)
    assert outcome["split"] == "test" and outcome["rows"] == 4
    assert err == "ftdocs: only 4 test rows: the figures are rough\n"
    wanted = (
        {"accuracy", "f1", "majority_accuracy"} if format == "label" else {"perplexity", "base_perplexity"}
    )
    assert wanted <= set(outcome["metrics"])
    if format == "label":
        counts = outcome["confusion"]["counts"]
        assert outcome["confusion"]["labels"] == ["calm", "storm"] and sum(map(sum, counts)) == 4
        assert (counts[0][0] + counts[1][1]) / 4 == outcome["metrics"]["accuracy"]
        low, high = outcome["intervals"]["accuracy"]
        assert low < outcome["metrics"]["accuracy"] < high or outcome["metrics"]["accuracy"] in (0, 1)
        assert run("evaluate", folder) == 0
        shown = capsys.readouterr().out
        assert f"(95 % interval: {low:.4f} to {high:.4f})" in shown and "rows of class" in shown
        assert "95 % interval, for 4 rows" in (folder / "README.md").read_text()

    card = (folder / "README.md").read_text()
    assert "**A smoke run** (profile smoke)" in card.split("| what |")[0]
    assert "only 4 validation rows: the figures are rough" in card
    assert ("apply_chat_template" in card) == (format not in ("text", "label"))
    said = use(card, capsys)
    assert any(name in said for name in ("calm", "storm")) if format == "label" else said != "\n"


@pytest.mark.parametrize(
    ("format", "method"), [("instruction", "lora"), ("prompt", "full"), ("label", "full"), ("label", "lora")]
)
def test_the_cards_words_work_without_a_chat_template_and_without_ftdocs(
    format, method, tiny_llama, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama, "plain")
    Path("plain/chat_template.jinja").unlink()
    job = recipe_file(tmp_path, write(tmp_path / "faq.jsonl", rows(format, 310)), "./plain", max_steps=1)
    monkeypatch.setenv("FTDOCS_PROFILE", "cpu")
    train(Recipe.load(job, [f"method.name={method}"]), Path("out").resolve())
    card = Path("out/README.md").read_text()
    assert "smoke" not in card and "rough" not in card and str(tmp_path) not in card
    assert "apply_chat_template" not in card and ("### Instruction" in card) == (format == "instruction")
    assert use(card, capsys) != "\n"
    words = (
        card.split("Without `ftdocs`: ")[1].replace("FOLDER_OF_THE_BASE_MODEL", '"plain"').split("`")[1::2]
    )
    names = {**vars(transformers), "PeftModel": PeftModel}
    for line in words[:-1]:
        exec(line if "=" in line.split("(")[0] else f"model = {line}", names)
    tokenizer = eval(words[-1], names)
    batch = tokenizer("What follows river?", return_tensors="pt")
    ours, _ = load_run(Path("out"))
    with torch.no_grad():
        logits = names["model"].to(ours.device)(**batch.to(ours.device)).logits
        assert torch.allclose(logits.float(), ours(**batch).logits.float(), atol=0.05)


def test_training_moves_held_out_loss_and_evaluation_agrees_with_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = recipe_file(tmp_path, write(tmp_path / "faq.jsonl", rows("prompt")))
    result = train(Recipe.load(job, ["train.max_steps=12", "data.validation=0.2"]), Path("out"))
    before, after = (row["eval_loss"] for row in runs.read_metrics(result.run) if "eval_loss" in row)
    assert after < 0.8 * before
    assert run("evaluate", "out", "--json") == 0
    metrics = last_json(capsys.readouterr().out)["metrics"]
    assert metrics["loss"] < 0.8 * metrics["base_loss"]
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def test_a_finished_run_is_reused_and_another_recipe_is_refused(job, monkeypatch, capsys):
    monkeypatch.setenv("FTDOCS_PROFILE", "cpu")
    assert run("train", job, "--output", "out", "--json") == 0
    first = capsys.readouterr().out
    written = (Path("out") / runs.METRICS).read_text()
    assert run("train", job, "--output", "out", "--json") == 0
    assert run("train", job, "--output", "out", "--json", "--resume") == 0
    assert capsys.readouterr().out == first * 2
    assert run("train", job, "--output", "out", "--set", "train.max_steps=3") == 2
    assert capsys.readouterr().err == (
        "ftdocs: out: holds a run of another recipe (train.max_steps: 2 there, 3 now);"
        " choose another --output, or remove the folder\n"
    )
    Path("faq.jsonl").write_text(Path("faq.jsonl").read_text().replace("river", "brook"))
    assert run("train", job, "--output", "out") == 2
    assert "another state of the data" in capsys.readouterr().err
    assert (Path("out") / runs.METRICS).read_text() == written
    assert run("evaluate", "out") == 2  # its test rows may be other ones now
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("mine")
    assert run("train", job, "--output", "notes") == 2
    assert "not a run" in capsys.readouterr().err and Path("notes/diary.txt").read_text() == "mine"


def test_a_smoke_run_in_the_way_is_called_one_and_the_differing_keys_are_named(job, monkeypatch, capsys):
    content = json.loads(job.read_text())
    small = {"data": {"limit": 20}, "train": {"max_steps": 1, "seq_len": 60, "batch_size": 1}}
    job.write_text(json.dumps({**content, "profiles": {"smoke": small}}))
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    assert run("train", job) == 0
    monkeypatch.setenv("FTDOCS_PROFILE", "cpu")
    capsys.readouterr()
    assert run("train", job) == 2
    assert capsys.readouterr().err == (
        "ftdocs: runs/job: holds a smoke run (profile smoke) of another recipe (data.limit: 20 there, not set now;"
        " train.max_steps: 1 there, 2 now; train.batch_size: 1 there, 2 now; and 1 more);"
        " choose another --output, or remove the folder\n"
    )


def wait_for_step(folder: Path, step: int, process: Command | Two) -> None:
    """Wait until a run has logged ``step``."""

    def reached() -> bool:
        return (folder / runs.METRICS).is_file() and any(
            row["step"] >= step for row in runs.read_metrics(folder)
        )

    if not process.until(reached, pause=0.02):
        pytest.fail(f"the run ended early: {process.end()}")


def curve(folder: Path) -> list[tuple]:
    """The figures of a run that must be the same to the last bit when it is repeated."""
    return [
        tuple(row.get(key) for key in ("step", "loss", "eval_loss", "grad_norm", "tokens", "learning_rate"))
        for row in runs.read_metrics(folder)
    ]


@pytest.mark.parametrize("engine", ["trainer", "loop"])
def test_ctrl_c_saves_and_says_how_to_go_on(job, capsys, engine):
    settings = [f"--set=train.engine={engine}", "--set=train.max_steps=200", "--set=train.save_every=100"]
    process = Command("train", job, *settings, "--output", "out")
    wait_for_step(Path("out"), 2, process)
    process.signal(signal.SIGINT)
    code, said = process.end()
    assert code == 1 and "--resume" in said.splitlines()[-1] and "Traceback" not in said
    saved = checkpoints.last_good(Path("out"))
    assert saved is not None and int(saved.name.split("-")[1]) >= 2

    # The first call had settings of its own, and they are easily left out.
    command = said.splitlines()[-1].partition("or with the same settings: ")[2]
    assert command == "ftdocs train out/recipe.yaml --output out --resume"
    assert run("train", job, "--output", "out", "--resume") == 2
    line = capsys.readouterr().err
    assert "holds a run of another recipe (train.max_steps: 200 there, 2 now" in line
    assert f"go on with it as it was: `{command}`; or choose another --output" in line
    assert "remove" not in line and line.count("\n") == 1


@pytest.mark.parametrize("engine", ["trainer", "loop"])
def test_without_save_every_a_checkpoint_is_written_by_the_clock(job, monkeypatch, engine):
    def stop(*_):
        raise SystemExit

    monkeypatch.setattr(training, "save", stop)
    for seconds, saved in ((0.0, "checkpoint-2"), (1000.0, None)):
        monkeypatch.setattr(progress, "SAVE_SECONDS", seconds)
        with pytest.raises(SystemExit):
            train(Recipe.load(job, ["train.max_steps=2", f"train.engine={engine}"]), Path(f"out{seconds}"))
        newest = checkpoints.last_good(Path(f"out{seconds}"))
        assert (newest.name if newest else None) == saved


def test_two_processes_cannot_write_one_run(job):
    with runs.hold(Path("out")):
        code, said = Command("train", job, "--output", "out").end()
    assert code == 2 and "another process" in said


@pytest.mark.parametrize("engine", ["trainer", "loop"])
def test_a_loss_that_is_no_number_stops_the_run(job, engine):
    settings = ["method.name=full", "train.learning_rate=1e30", "train.max_steps=6", f"train.engine={engine}"]
    with pytest.raises(Diverged, match=r"step \d, on rows \d+"):
        train(Recipe.load(job, settings), Path("out"))


def test_packing_puts_more_tokens_into_a_step_and_changes_no_held_out_loss(job):
    packed, padded = (
        runs.read_metrics(
            train(Recipe.load(job, [f"train.packing={packing}", "train.seq_len=256"]), Path(packing)).run
        )
        for packing in ("true", "false")
    )
    assert packed[0]["eval_loss"] == padded[0]["eval_loss"]
    assert packed[1]["tokens"] > 1.3 * padded[1]["tokens"]


def test_the_last_step_is_logged_whatever_log_every(job, capsys):
    assert run("train", job, "--set", "train.log_every=10", "--json") == 0
    assert math.isfinite(last_json(capsys.readouterr().out)["loss"])


def test_what_is_no_number_is_null_in_the_metrics(job):
    settings = ["method.name=full", "train.learning_rate=1e30", "train.max_steps=6"]
    with pytest.raises(Diverged):
        train(Recipe.load(job, settings), Path("out"))
    text = (Path("out") / runs.METRICS).read_text()
    assert "NaN" not in text and "Infinity" not in text and '": null' in text


def test_a_kept_recipe_is_read_as_it_was_made(job, monkeypatch):
    """Neither the environment of a later day nor a profile changes what a run says it was."""
    content = json.loads(job.read_text())
    job.write_text(json.dumps({**content, "profiles": {"smoke": {"train": {"max_steps": 1}}}}))
    result = train(Recipe.load(job, ["train.max_steps=3"], "smoke"), Path("out"))
    assert result.steps == 3
    monkeypatch.setenv("FTDOCS_TRAIN__SEED", "7")
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    kept = runs.read_recipe(Path("out"))
    assert kept.train.seed == 0 and kept.train.max_steps == 3 and not kept.profiles
    assert str(Path.cwd()) not in (Path("out") / runs.RECIPE).read_text()
    assert run("evaluate", "out") == 0


def test_one_changed_answer_is_noticed_before_it_is_evaluated(job, capsys):
    assert run("train", job, "--output", "out") == 0
    Path("faq.jsonl").write_text(
        Path("faq.jsonl").read_text().replace("follows river 0.", "FOLLOWS river 0!")
    )
    assert run("evaluate", "out") == 2
    assert "data has changed" in capsys.readouterr().err


def test_data_that_are_gone_are_one_line(job, capsys):
    assert run("train", job, "--output", "out") == 0
    Path("faq.jsonl").rename("moved.jsonl")
    for arguments in (("evaluate", "out"), ("train", job), ("train", job, "--output", "out")):
        capsys.readouterr()
        assert run(*arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "faq.jsonl: no such file or folder; put it back" in line


def test_resuming_says_from_where(job, capsys):
    assert run("train", job, "--output", "new", "--resume") == 0
    assert "new: no checkpoint to go on from; starting from the beginning" in capsys.readouterr().err


def test_another_base_model_is_noticed(job, tiny_llama, capsys):
    copy = Path("base")
    shutil.copytree(tiny_llama, copy)
    assert run("train", job, "--output", "out", "--set", "model=./base") == 0
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert run("evaluate", "out") == 2
    assert "base model" in capsys.readouterr().err


def test_the_words_about_an_unfinished_run_can_be_pasted(job, capsys):
    process = Command("train", job, "--set", "train.max_steps=20", "--output", "out")
    wait_for_step(Path("out"), 5, process)
    process.signal(signal.SIGKILL)
    assert process.end()[0] == -signal.SIGKILL
    assert run("evaluate", "out") == 2
    words = capsys.readouterr().err.split("`")[1].split()
    assert words[0] == "ftdocs" and run(*words[1:]) == 0
    assert runs.read_result(Path("out")).steps == 20


def test_epochs_count_every_batch_once(job):
    recipe = Recipe.load(
        job, ["train.max_steps=null", "train.epochs=2", "train.packing=false", "train.batch_size=8"]
    )
    assert steps(recipe, 33) == 10 and steps(recipe, 32) == 8
    result = train(recipe, Path("out"))
    assert result.steps == 2 * 4  # 32 training rows, eight a step


@pytest.mark.parametrize(
    ("kind", "method", "rate"), [("text", "lora", 1e-3), ("text", "full", 1e-4), ("label", "full", 5e-5)]
)
def test_a_rate_that_is_left_out_is_the_documented_one(kind, method, rate):
    recipe = Recipe.model_validate({"model": "x", "data": {"path": "y"}, "method": {"name": method}})
    assert learning_rate(recipe, kind) == rate


def test_text_may_name_several_targets(job):
    assert run("train", job, "--set", "method.targets=q_proj, v_proj", "--output", "out") == 0
    saved = json.loads((Path("out") / "adapter/adapter_config.json").read_text())
    assert set(saved["target_modules"]) == {"q_proj", "v_proj"}


GOOD = "".join(json.dumps(row) + "\n" for row in rows("prompt"))
LABELLED = "".join(json.dumps(row) + "\n" for row in rows("label"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD.replace('{"prompt": "What follows meadow 17', '{"prompt": What follows meadow 17', 1), "row"),
        (GOOD.replace("completion", "answer"), "columns"),
        (GOOD.replace('"completion": "The', '"completion": null, "x": "The', 1), "null"),
        (GOOD.replace("river 0?", "river\\u0000 0?", 1), "NUL"),
        ("", "no rows"),
        (LABELLED.replace("storm", "calm"), "two classes"),
        (json.dumps({"prompt": "word " * 400, "completion": "x"}) + "\n", "at least"),
        (
            "".join(
                json.dumps({"prompt": f"{n} " + "word " * 400, "completion": "x"}) + "\n" for n in range(40)
            ),
            "masked",
        ),
        (GOOD.replace("{", '{"messages": [{"role": "wizard", "content": "x"}], ', 1), "row"),
    ],
    ids=["broken", "column", "null", "nul", "empty", "one-class", "too-few", "masked", "role"],
)
def test_bad_data_is_one_line_and_leaves_nothing(content, says, job, capsys):
    Path("faq.jsonl").write_text(content)
    assert run("train", job) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err and "faq.jsonl" in err, err
    assert not Path("runs/job").exists()


def test_a_file_in_another_encoding_is_one_line(job, capsys):
    Path("faq.jsonl").write_bytes(GOOD.replace("river", "r\xefver").encode("latin-1"))
    assert run("train", job) == 2
    assert "UTF-8" in capsys.readouterr().err.replace("utf-8", "UTF-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "job.yaml", "--set", "model=smollm3"], "smollm2-135m-instruct"),
        (["train", "job.yaml", "--set", "method.targets=[queries]"], "q_proj"),
        (["train", "job.yaml", "--set", "data.name=docstring", "--set", "data.path=null"], "docstrings"),
        (["train", "job.yaml", "--set", "train.max_stepz=1"], "max_steps"),
        (["train", "job.yaml", "--set", "method.layers=2"], "add --set method.name=layers"),
        (["train", "job.yaml", "--set", "model=minilm"], "generate text"),
        (["train", "job.yaml", "--set", "train.seq_len=100000"], "train.seq_len"),
        (["train", "job.yaml", "--set", "train.report_to=[mlflow]"], "mlflow"),
        (["trian", "job.yaml"], "train"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "."], "not"),
        (["new", "nowhere.jsonl"], "nowhere.jsonl"),
        (["train"], "RECIPE.yaml"),
        ([], "COMMAND"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, says, job, capsys):
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err and "Traceback" not in err
    assert not Path("runs").exists() or not any(Path("runs/job").glob("[!.]*"))


def test_a_run_goes_on_under_a_newer_version_that_knows_more_keys(job, tmp_path):
    """Each key counts with its default, so a new one changes the digest; what the user wrote is the same."""
    recipe, folder = Recipe.load(job), tmp_path / "run"
    folder.mkdir()
    prints = runs.fingerprint(recipe, recipe.data.path)
    runs.start(folder, recipe, {**prints, "recipe": "of an earlier version", "spread": "of one too"})
    runs.check_same(folder, recipe, prints, resume=True)
    runs.check_same(folder, recipe, prints)
    other = Recipe.load(job, ["train.batch_size=7"])
    with pytest.raises(InputError, match=r"its steps have [0-9]+ rows"):
        runs.check_same(folder, other, runs.fingerprint(other, other.data.path), resume=True)
    other = Recipe.load(job, ["train.learning_rate=0.5"])
    with pytest.raises(InputError, match=r"train\.learning_rate: .* 0\.5 now"):
        runs.check_same(folder, other, runs.fingerprint(other, other.data.path), resume=True)


def test_what_a_killed_write_left_is_removed(job, monkeypatch):
    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # what tidies up does not run either
        with pytest.raises(SystemExit):
            files.write_atomic(Path("out") / runs.METRICS, "half")
    [left] = Path("out").iterdir()
    assert left.name.startswith(f".{runs.METRICS}.")
    assert run("train", job, "--output", "out") == 0
    assert not left.exists() and (Path("out") / runs.RESULT).exists()


def test_a_checkpoint_of_one_process_is_written_without_a_warning(job, recwarn):
    train(Recipe.load(job, ["train.engine=loop", "train.save_every=1"]), Path("out"))
    assert not [str(each.message) for each in recwarn if "single process" in str(each.message)]


def test_what_a_killed_save_left_is_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".checkpoint-3.abc.making"
    left.mkdir(parents=True)
    checkpoints.remove_after(tmp_path, None)
    assert not left.exists()


def test_a_local_model_with_damaged_weights_is_one_line(job, tiny_llama, tmp_path, capsys):
    shutil.copytree(tiny_llama, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run("train", job, "--set", f"model={tmp_path / 'cut'}", "--output", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert "cut: its weights are damaged" in line and line.count("\n") == 1


@pytest.mark.parametrize("name", [runs.ENVIRONMENT, runs.RESULT])
def test_a_run_whose_facts_are_damaged_is_told_in_one_line(name, job, tmp_path, capsys):
    assert run("train", job, "--output", tmp_path / "out") == 0
    (tmp_path / "out" / name).write_text('{"fingerp')
    for command in (["evaluate", tmp_path / "out"], ["train", job, "--output", tmp_path / "out"]):
        capsys.readouterr()
        assert run(*command) == 2
        line = capsys.readouterr().err
        assert f"{name}: is damaged or gone; restore it, or train again" in line and line.count("\n") == 1


def test_train_says_how_many_rows_are_cut_and_how_many_left_out(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    monkeypatch.setenv("FTDOCS_MODEL", str(tiny_llama))
    long = [{"prompt": f"{number} {'river stone ' * 60}", "completion": "amber"} for number in range(3)]
    wordy = [{"prompt": f"Say {number}.", "completion": "river stone " * 60} for number in range(2)]
    short = [{"prompt": f"{number}?", "completion": WORDS[number]} for number in range(12)]
    write(tmp_path / "mine.jsonl", [*short, *long, *wordy])
    assert run("new", "mine.jsonl", "--json") == 0
    capsys.readouterr()
    settings = ["--set=data.validation=0", "--set=data.test=0", "--set=train.seq_len=64"]
    assert run("train", "mine.yaml", "--json", "--output", "out", *settings) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert (
        "mine.jsonl: 3 training rows are left out: nothing that is trained lies within train.seq_len: 64"
        in said
    )
    card = Path("out/README.md").read_text()
    assert "| training rows cut at 64 tokens | 5 |" in card
    assert "| training rows left out, with nothing to train on so far | 3 |" in card


def test_train_says_that_texts_stand_with_two_labels(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    monkeypatch.setenv("FTDOCS_MODEL", str(tiny_llama))
    mine = rows("label")
    write(tmp_path / "mine.jsonl", [*mine, {"text": mine[0]["text"], "label": mine[1]["label"]}])
    assert run("new", "mine.jsonl", "--json") == 0
    capsys.readouterr()
    assert run("train", "mine.yaml", "--json") == 0
    said = capsys.readouterr().err
    assert "mine.jsonl: texts with more than one label: 1; `ftdocs data inspect` names their rows\n" in said
