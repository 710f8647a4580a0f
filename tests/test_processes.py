"""Several processes train as one: DDP through Trainer, FSDP2 through the loop."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from forked import Two, context
from safetensors.torch import load_file, save_file
from test_engines import classifier, documents, labelled, llama, same, work
from test_engines import curve as column
from test_runs import curve, job, run, tiny_llama, wait_for_step  # noqa: F401, fixtures

from ftdocs import checkpoints, loop, models, processes, runs, trainer
from ftdocs.errors import InputError

ROOT = Path(__file__).parent.parent
LAUNCHERS = {
    "torchrun": [
        "torchrun",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ],
    "bare accelerate": ["accelerate", "launch"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}
SETTINGS = {"packing": False, "batch_size": 2, "accumulation": 2, "max_steps": 20}
ROWS = 57  # of different lengths; the last step of an epoch has one row, so that a process is left without


def run_case(case: dict) -> None:
    """Train one job in this process, or with the others; the trained weights are left as ``weights.safetensors``."""
    engine = {"loop": loop, "trainer": trainer}[case["engine"]]
    folder = Path(case["folder"])
    train = {**SETTINGS, **case.get("train", {})}
    if case["method"] == "label":
        each = work(folder, classifier(), labelled(documents(ROWS)), kind="label", **train)
    else:
        each = work(folder, rows=documents(ROWS), method=case["method"], **train)
    anew, passes, layers = each.recipe.train.checkpointing, [], []
    if anew:
        models.compute_anew(each.model)
    mlp = next(
        part for part in each.model.modules() if type(part).__name__ in ("LlamaMLP", "BertIntermediate")
    )
    each.model.register_forward_pre_hook(lambda model, _: passes.append(model.training))
    mlp.register_forward_pre_hook(lambda part, _: layers.append(part.training))
    each.resumed_from = Path(case["resume"]) if "resume" in case else None
    engine.run(each)
    assert 0 < sum(layers) == sum(passes) * (2 if anew else 1)
    if processes.count() > 1 and case["engine"] == "loop":
        processes.check_sharded(each.model)
    weights = processes.whole_weights(each.model, trained_only=True)
    if processes.is_main():
        save_file({name: weight.clone() for name, weight in weights.items()}, folder / "weights.safetensors")


def launch(launcher: str, *arguments: object) -> subprocess.Popen:
    """Two processes, started as a user starts them."""
    command = [*LAUNCHERS[launcher], *map(str, arguments)]
    return subprocess.Popen(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def own_lines(errors: str) -> list[str]:
    """What we have told on standard error; the launchers add an account of their own when a process fails."""
    assert "/ftdocs/" not in errors, errors  # in a traceback
    return [line for line in errors.splitlines() if line.startswith("ftdocs: ")]


@pytest.mark.parametrize(("engine", "launcher"), [("loop", "torchrun"), ("trainer", "accelerate")])
def test_two_processes_train_as_one_and_take_up_each_others_checkpoints(tmp_path, engine, launcher):
    """In losses, gradient norms, tokens and weights; every weight, LoRA, a classifier; after a resume too."""
    alone = {"accumulation": 4, "save_every": 10}

    def case(method: str, name: str, resume: str = "", **train: int) -> dict:
        found = {
            "engine": engine,
            "method": method,
            "folder": str(tmp_path / f"{name}-{method}"),
            "train": train,
        }
        from_ = tmp_path / f"{resume}-{method}" / "checkpoints" / "checkpoint-10"
        return {**found, "resume": str(from_)} if resume else found

    methods = ("full", "lora", "label")
    for method in methods:
        run_case(case(method, "one", **alone))
    several = [
        each
        for method in methods
        for each in (
            case(method, "two", save_every=10),
            case(method, "one-then-two", resume="one"),
            case(method, "two-then-two", resume="two"),
        )
    ]
    several.append(case("full", "two-anew", save_every=10, checkpointing=True))
    process = launch(launcher, __file__, json.dumps(several))
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    kept, anew = (
        load_file(tmp_path / f"{name}-full" / "weights.safetensors") for name in ("two", "two-anew")
    )
    assert all(torch.equal(weight, anew[name]) for name, weight in kept.items())
    for method in methods:
        run_case(case(method, "two-then-one", resume="two", **alone))
        one = tmp_path / f"one-{method}"
        weights = load_file(one / "weights.safetensors")
        assert torch.equal(column(one, "tokens"), column(tmp_path / f"two-{method}", "tokens"))
        for name, begin in (("two", 0), ("one-then-two", 10), ("two-then-two", 10), ("two-then-one", 10)):
            other = tmp_path / f"{name}-{method}"
            same(column(one)[begin:], column(other), 1e-4)
            same(column(one, "grad_norm")[begin:], column(other, "grad_norm"), 1e-4)
            torch.testing.assert_close(column(one, "learning_rate")[begin:], column(other, "learning_rate"))
            for key, weight in load_file(other / "weights.safetensors").items():
                torch.testing.assert_close(weight, weights[key], rtol=0, atol=1e-4)
        assert column(one)[-1] < column(one)[0]


def test_ctrl_c_stops_all_at_one_step_and_one_process_goes_on(job, capsys):  # noqa: F811
    settings = ["--set=train.engine=loop", "--set=method.name=full", "--set=train.learning_rate=1e-3"]
    settings += ["--set=train.max_steps=80", "--set=train.precision=fp32", "--set=train.eval_every=40"]
    process = Two("train", job, *settings, "--output", "out")
    wait_for_step(Path("out"), 2, process)
    assert run("train", job, *settings, "--output", "out", "--set=train.accumulation=2") == 2
    assert "another process is writing this run" in capsys.readouterr().err
    process.signal(signal.SIGINT)
    code, _, errors = process.end()
    stopped = checkpoints.last_good(Path("out"))
    assert code != 0 and stopped is not None
    last = checkpoints.step_of(stopped)
    assert own_lines(errors) == [f"ftdocs: out: stopped after step {last}; add --resume to go on"]
    assert 2 <= last == runs.read_metrics(Path("out"))[-1]["step"] < 80
    assert json.loads((Path("out") / runs.ENVIRONMENT).read_text())["processes"] == 2

    # Half as many rows a step would be another training.
    assert run("train", job, *settings, "--output", "out", "--resume") == 2
    assert (
        "out: its steps have 4 rows (train.batch_size × train.accumulation × processes), these would have 2; start 2"
        " processes as before, or set train.accumulation so that it stays 4" in capsys.readouterr().err
    )
    settings.append("--set=train.accumulation=2")
    assert run("train", job, *settings, "--output", "out", "--resume") == 0
    assert run("train", job, *settings, "--output", "one") == 0
    for two, one in zip(curve(Path("out")), curve(Path("one")), strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    environment = json.loads((Path("out") / runs.ENVIRONMENT).read_text())
    assert environment["processes"] == 1 and environment["resumed_from"][0]["processes"] == 2


@pytest.mark.parametrize("engine", ["loop", "trainer"])
def test_a_run_of_two_is_a_run_like_any_other(job, capsys, engine):  # noqa: F811
    """Its model is whole, its folder is one process's, and one process may not take it for its own."""
    settings = [f"--set=train.engine={engine}", "--set=train.precision=fp32", "--set=train.max_steps=6"]
    if engine == "loop":
        settings += ["--set=method.name=full", "--set=train.learning_rate=1e-3"]
    code, out, errors = Two("train", job, *settings, "--json", "--output", "two").end()
    assert code == 0, errors
    assert out.count("\n") == 1 and json.loads(out)["steps"] == 6 and own_lines(errors) == []
    settings.append("--set=train.accumulation=2")
    assert run("train", job, *settings, "--output", "one") == 0
    for two, one in zip(curve(Path("two")), curve(Path("one")), strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    names = [{path.relative_to(name) for path in Path(name).rglob("*")} for name in ("one", "two")]
    assert names[0] == names[1]
    [files] = [[next(Path(name).glob("*/*.safetensors")) for name in ("one", "two")]]
    one, two = (load_file(file) for file in files)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4)
    model, _ = models.load_run(Path("two"))
    assert not processes.is_sharded(model)
    capsys.readouterr()
    assert run("train", job, *settings, "--output", "two") == 2  # its seconds are those of two processes
    assert "train.accumulation: 1 there, 2 now; train.processes: 2 there, 1 now" in capsys.readouterr().err
    assert run("evaluate", "two") == 0


def test_a_process_that_is_killed_takes_the_others_with_it(job):  # noqa: F811
    settings = ["--set=train.engine=loop", "--set=train.max_steps=2000", "--set=train.save_every=2"]
    process = Two("train", job, *settings, "--output", "out")
    wait_for_step(Path("out"), 4, process)
    os.kill(process.pid(1), signal.SIGKILL)
    code, _, errors = process.end(60)
    assert code != 0 and not psutil.pid_exists(process.pid(0))
    assert set(own_lines(errors)) <= {
        "ftdocs: another process of this run has ended, and so does this one; add --resume to go on"
    }
    assert checkpoints.last_good(Path("out")) is not None


def test_what_is_wrong_for_one_is_said_once(job):  # noqa: F811
    """A folder that is held by others is found out by the main process alone; a wrong key by both."""
    with runs.hold(Path("out")):
        code, _, errors = Two("train", job, "--output", "out").end()
    assert code != 0
    [line] = own_lines(errors)
    assert "another process is writing this run" in line and "exitcode  : 2" in errors


def test_fsdp_through_accelerate_on_a_cpu_is_refused(job, tmp_path, monkeypatch, capsys):  # noqa: F811
    """With this configuration Accelerate trains on a CPU without a word, and shards nothing."""
    config = tmp_path / "fsdp.yaml"
    config.write_text(CONFIG.read_text().replace("mixed_precision: bf16", "mixed_precision: 'no'"))
    options = ["--config_file", config, "--num_processes", "2", "--main_process_port", "0", "--no_python"]
    process = launch("bare accelerate", *options, "env")  # what it would tell its processes
    told, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    for line in told.splitlines():
        name, _, value = line.partition("=")
        if name.startswith(("ACCELERATE_", "FSDP_")) or name in ("WORLD_SIZE", "MASTER_ADDR"):
            monkeypatch.setenv(name, value)
    assert os.environ["WORLD_SIZE"] == "2"
    assert run("train", job, "--output", "out") == 2 and not Path("out").exists()
    [line] = own_lines(capsys.readouterr().err)
    assert "train.engine: loop" in line


def test_a_process_that_waits_in_vain_is_told_apart_from_a_fault(tmp_path, monkeypatch):
    """By what gloo really says, when the other process is there and does not come."""
    waited = context.Process(target=wait_in_vain, args=(1, tmp_path))
    waited.start()
    said = wait_in_vain(0, tmp_path)
    waited.join()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.lost(said) and not processes.lost(RuntimeError("size mismatch"))


def wait_in_vain(rank: int, folder: Path) -> Exception:
    """What is raised when the first of two processes asks for a sum and the second one has something else to do."""
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    group = torch.distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=2))
    if rank == 0:
        with pytest.raises(RuntimeError) as raised:
            group.allreduce(torch.ones(1)).wait()
        store.set("done", "")
        return raised.value
    store.wait(["done"], timedelta(seconds=60))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the words are those for a machine without GPU")
def test_starts_that_would_train_something_else_are_refused(job, monkeypatch, capsys):  # noqa: F811
    def refused(says: str, *arguments: str, **environment: str) -> None:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert run("train", job, "--output", "out", *arguments) == 2
        assert says in capsys.readouterr().err and not Path("out").exists()

    # What `accelerate launch --cpu --num_processes 2` starts, where there is no MPI.
    refused("has started one", ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="127.0.0.1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    refused("4 GPUs and one process; start one for each: `torchrun --nproc-per-node 4")


def test_what_accelerate_was_told_must_not_win_over_the_recipe(tmp_path, monkeypatch):
    each = work(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(InputError, match="mixed_precision is bf16"):
        trainer.run(each)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InputError, match="2 processes were started, and Accelerate trains with 1"):
        trainer.run(each)


def test_a_model_that_is_not_sharded_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"embed_tokens\.weight is not sharded"):
        processes.check_sharded(llama())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # and then does nothing, as on a CPU
    with pytest.raises(InputError, match=r"is not sharded; nothing was trained"):
        trainer.run(work(tmp_path))
    assert not runs.read_metrics(tmp_path)


def test_each_block_of_layers_is_a_unit():
    model = llama()
    assert processes.blocks(model) == list(model.model.layers)


CONFIG = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"


def test_accelerate_knows_every_key_of_the_gpu_configuration():
    config = load_config_from_file(str(CONFIG))  # refuses unknown keys of the top level
    assert config.distributed_type == "FSDP"
    known = {name for name in vars(launch_command_parser().parse_args(["x.py"])) if name.startswith("fsdp")}
    assert set(config.fsdp_config) <= known


if __name__ == "__main__":
    with processes.joined():
        for each_case in json.loads(sys.argv[1]):
            run_case(each_case)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(processes.hardware, "device", lambda: torch.device("cuda"))
    with pytest.raises(InputError, match="2 processes were started on this machine and it has 1 GPU;"):
        processes.check("loop")
