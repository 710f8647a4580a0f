"""Train one model with PROCESSES processes on the machines of a Ray cluster, each with a GPU, or with GPUS=0 without.

python recipes/cloud/ray_job.py RECIPE.yaml --output RUN [--set KEY=VALUE …]
"""

import os
import socket
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@ray.remote
class Process:
    """One of the processes; torch finds the others by the variables that torchrun would set."""

    def address(self) -> tuple[str, int]:
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def train(self, rank: int, count: int, main: tuple[str, int], words: list[str]) -> int:
        # Ray shows each process its own GPU alone, so for each it is the first.
        alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        place = {"MASTER_ADDR": main[0], "MASTER_PORT": main[1], "RANK": rank, "WORLD_SIZE": count}
        os.environ |= alone | {name: str(value) for name, value in place.items()}
        from ftdocs import cli

        return cli.main(["train", *words, "--resume"])


def main(words: list[str]) -> int:
    """The exit code: that of the first process that has another one than 0."""
    count = int(os.environ.get("PROCESSES", "1"))
    ray.init()
    # Said, and not looked for: a cluster that is still growing has none yet, and would be trained on by its CPUs.
    gpus = int(os.environ.get("GPUS", "1"))
    each = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
    print(f"waiting for {count} places of {each}", file=sys.stderr)
    group = placement_group([each] * count)  # all of them at once, or none
    ray.get(group.ready())
    place = PlacementGroupSchedulingStrategy(group)
    options = {"num_cpus": each["CPU"], "num_gpus": gpus, "scheduling_strategy": place}
    processes = [Process.options(**options).remote() for _ in range(count)]
    first = ray.get(processes[0].address.remote())
    codes = ray.get([one.train.remote(rank, count, first, words) for rank, one in enumerate(processes)])
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
