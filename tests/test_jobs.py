"""Job files for clusters: they train on this machine's processes, with stand-ins for what only a cluster has."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ftdocs import cli, runs

CLONE = Path(__file__).parents[1]
SMALL = "--set method.name=lora --set method.targets=q_proj --set train.precision=fp32 --set data.limit=60"
SMALL += " --set train.seq_len=16 --set train.max_steps=1"


# sbatch's long options: src/common/slurm_opt.c of SchedMD/slurm at 284c3b95, and https://slurm.schedmd.com/sbatch.html.
SBATCH = set(
    """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot
    dependency distribution error exclude exclusive export export-file extra extra-node-info get-user-env gid gpu-
    bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags help hint hold ignore-pbs input
    job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus
    network nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node
    ntasks-per-socket oom-kill-step open-mode output overcommit oversubscribe parsable partition prefer priority
    profile propagate qos quiet reboot requeue reservation resv-ports segment signal sockets-per-node spread-job
    stepmgr switches test-only thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid usage use-
    min-nodes verbose version wait wait-all-nodes wckey wrap
    """.split()
)


def started(folder: Path, command: str, **variables: str) -> subprocess.CompletedProcess:
    """A shell's command on the CPU, where the environment's own programs are found first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        "PATH": path,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def trained_by(run: Path) -> tuple[list[int], int]:
    """The steps of a run, and how many processes did them."""
    steps = [row["step"] for row in runs.read_metrics(run) if "loss" in row]
    return steps, json.loads((run / "environment.json").read_text())["processes"]


def test_slurm_job_trains_and_comes_back_from_the_queue(tmp_path):
    shutil.copytree(CLONE / "recipes", tmp_path / "recipes")
    stand_ins = 'scontrol() { echo localhost; }; srun() { "$@" ' + SMALL + "; }; export -f scontrol srun; "
    variables = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    variables |= {"SLURM_JOB_NODELIST": "localhost"}
    first = started(tmp_path, stand_ins + "bash recipes/cloud/train.slurm", **variables)
    assert first.returncode == 0, first.stderr
    assert trained_by(tmp_path / "runs/17") == ([1], 2)
    show = stand_ins + 'srun() { echo "$@"; }; bash recipes/cloud/train.slurm'
    assert started(tmp_path, show, **variables).stdout.rstrip().endswith("--output runs/17 --resume")


def test_slurm_knows_each_option_of_the_job():
    lines = (CLONE / "recipes/cloud/train.slurm").read_text(encoding="utf-8").splitlines()
    asked = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)=?(\S*)", line).groups() for line in lines if line.startswith("#SB")
    )
    assert len(asked) > 5 and not asked.keys() - SBATCH
    assert lines.index("set -euo pipefail") > max(
        i for i, line in enumerate(lines) if line.startswith("#SBATCH")
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d", asked.pop("time"))
    assert (
        asked.pop("job-name")
        and asked.pop("requeue") == ""
        and all(int(number) > 0 for number in asked.values())
    )


def test_two_pods_of_the_kubernetes_job_train_one_model(tmp_path):
    """Two shells stand for the pods, with the variables that pods get, but one process each and no GPU."""
    documents = yaml.safe_load_all((CLONE / "recipes/cloud/kubernetes.yaml").read_text(encoding="utf-8"))
    (job,) = (document for document in documents if document["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = {"PODS": "2", "GPUS": "1", "MAIN": "localhost", "PORT": str(port), "SHARED": str(tmp_path)}
    variables |= {"RECIPE": str(CLONE / "recipes/training-in-the-open.yaml"), "SETTINGS": SMALL}
    pods = 'for index in 0 1; do JOB_COMPLETION_INDEX=$index bash -euc "$COMMAND" & done; wait -n && wait -n'
    done = started(tmp_path, pods, COMMAND=container["args"][0], **variables)
    assert done.returncode == 0, done.stderr
    assert trained_by(tmp_path / "runs/finetune") == ([1], 2)


def test_ray_job_trains_one_model_by_two_processes(tmp_path):
    recipe = CLONE / "recipes/training-in-the-open.yaml"
    command = f"python {CLONE}/recipes/cloud/ray_job.py {recipe} --output {tmp_path}/run {SMALL}"
    done = started(tmp_path, command, PROCESSES="2", GPUS="0", RAY_TMPDIR="/tmp", PYTHONPATH=str(CLONE))
    assert done.returncode == 0, done.stderr
    assert trained_by(tmp_path / "run") == ([1], 2)


@pytest.mark.parametrize("by", ["file", "variable"])
def test_zero_3_is_refused_since_it_would_write_empty_weights(by, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    if by == "file":
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(CLONE / "recipes/accelerate/zero3.json"))
    else:
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert (
        cli.main(["train", str(CLONE / "recipes/first-fine-tune.yaml"), "--output", str(tmp_path / "run")])
        == 2
    )
    line = capsys.readouterr().err
    assert re.search("ZeRO-3 is not for ftdocs.*FSDP2", line) and line.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_zero_2_is_not(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(CLONE / "recipes/accelerate/zero2.json"))
    cli.check_deepspeed()
