"""`ftdocs …` in real processes of their own, forked from one that has imported everything and run nothing.

They can be killed, and start in a moment: Python's own start, with torch and Transformers, takes some five seconds.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ftdocs.cli import main

context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
context.set_forkserver_preload(
    "ftdocs.cli ftdocs.train transformers.models.llama.modeling_llama transformers.trainer datasets".split()
)


def live(arguments: list[str], folder: str, said: str) -> None:
    """The whole life of a process; what it prints goes into the file ``said``."""
    os.chdir(folder)
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


class Command:
    """A running `ftdocs …`, in today's working folder."""

    def __init__(self, *arguments: object):
        self.said = Path("said.txt").resolve()
        words = [str(argument) for argument in arguments]
        self.process = context.Process(target=live, args=(words, os.getcwd(), str(self.said)))
        self.process.start()

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Its exit code, which is -9 when it was killed, and what it printed."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"not ended after {seconds} s: {self.said.read_text()}"
        return self.process.exitcode, self.said.read_text()

    def until(self, happened: Callable[[], bool]) -> bool:
        """Wait until something has happened; False when the process ended before."""
        while not happened():
            if not self.process.is_alive():
                return False
            time.sleep(0.0005)
        return True

    def kill_after(self, seconds: float) -> None:
        """SIGKILL, unless it ends by itself before."""
        self.process.join(seconds)
        self.process.kill()
