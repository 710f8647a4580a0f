"""`ftdocs …` in real processes of their own, forked from one that has imported everything and run nothing.

They can be killed, and start in a moment: Python's own start, with torch and Transformers, takes some five seconds.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ftdocs.cli import main

context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
context.set_forkserver_preload(
    "forked ftdocs.cli ftdocs.train ftdocs.loop ftdocs.trainer ftdocs.metrics ftdocs.intervals"
    " transformers.models.llama.modeling_llama".split()
)


class Forked:
    """A process that does ``task(arguments)`` in today's working folder; the names of files that it prints into."""

    def __init__(self, task: Callable[[list[str]], None], out: str, errors: str, *arguments: object):
        self.out, self.errors = Path(out).resolve(), Path(errors).resolve()
        for path in (self.out, self.errors):
            path.write_text("")  # here, as it may be killed before it has opened them
        words = [str(argument) for argument in arguments]
        self.process = context.Process(target=live, args=(task, words, os.getcwd(), self.out, self.errors))
        self.process.start()

    def wait(self, seconds: float) -> int:
        """Its exit code, which is -9 when it was killed."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"not ended after {seconds} s: {self.errors.read_text()}"
        return self.process.exitcode

    def until(self, happened: Callable[[], bool], pause: float = 0.0005) -> bool:
        """Wait until something has happened, looking every ``pause`` seconds; False when the process ended before."""
        while not happened():
            if not self.process.is_alive():
                return False
            time.sleep(pause)
        return True

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)


def live(
    task: Callable[[list[str]], None], arguments: list[str], folder: str, out: Path, errors: Path
) -> None:
    """The whole life of a process."""
    os.chdir(folder)
    for number, path in ((1, out), (2, errors)):
        with open(path, "a") as file:  # both may be the same file
            os.dup2(file.fileno(), number)
    task(arguments)


def command(arguments: list[str]) -> None:
    """`ftdocs …`."""
    sys.exit(main(arguments))


class Command(Forked):
    """A running `ftdocs …`."""

    def __init__(self, *arguments: object):
        super().__init__(command, "said.txt", "said.txt", *arguments)

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        return self.wait(seconds), self.errors.read_text()

    def kill_after(self, seconds: float) -> None:
        """SIGKILL, unless it ends by itself before."""
        self.process.join(seconds)
        self.process.kill()


def worker(arguments: list[str]) -> None:
    """One of several processes, with the signals of one that was started anew."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Path(f"rank-{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    sys.exit(main(arguments))


def launcher(arguments: list[str]) -> None:
    """`torchrun --nproc-per-node 2 -m ftdocs.cli …`, whose processes are forked from it and not started anew."""
    os.environ["OMP_NUM_THREADS"] = "1"
    here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork"}
    try:
        elastic_launch(LaunchConfig(1, 1, nproc_per_node=2, max_restarts=0, **here), worker)(arguments)
    except (ChildFailedError, SignalException) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


class Two(Forked):
    """A running `ftdocs …` in two processes, started by torchrun's own launcher."""

    def __init__(self, *arguments: object):
        super().__init__(launcher, "out.txt", "err.txt", *arguments)

    def end(self, seconds: float = 300) -> tuple[int, str, str]:
        """The launcher's exit code, and what the two have printed on standard output and standard error."""
        return self.wait(seconds), self.out.read_text(), self.errors.read_text()

    def pid(self, rank: int) -> int:
        """The process of this rank."""
        return int(self.out.with_name(f"rank-{rank}.pid").read_text())
