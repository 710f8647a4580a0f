"""Kernels that start in a moment: forked from one process that has imported the slow libraries, and run nothing.

To import torch, Transformers and PEFT takes some six seconds of a core, which each of the book's pages would take
again. Each process that runs pages has one server (this file, as a script): it reads an order a line, imports what the
page needs and it has not imported yet, forks, and answers with the number of the kernel's process.
"""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import psutil
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

# Of a distribution that a page reaches, what takes long to import. Never the package itself, whose lines are traced.
SLOW = {
    "torch": ("torch",),
    "transformers": (
        "transformers.models.llama.modeling_llama",
        "transformers.models.bert.modeling_bert",
        "transformers.trainer",
    ),
    "peft": ("peft",),
    "datasets": ("datasets",),
    "scikit-learn": ("sklearn.linear_model", "sklearn.metrics"),
    "scipy": ("scipy.stats",),
}


def can_fork() -> bool:
    """Whether a process may be forked here that has loaded such libraries; macOS's own do not survive it."""
    return sys.platform == "linux"


class Server:
    """The process that kernels are forked from, started by whoever asks first."""

    def __init__(self, env: dict[str, str]):
        """Start it; of ``env`` libraries read some once, when they are loaded: threads, warnings, where caches are."""
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=env, **pipes)

    def fork(self, argv: list[str], env: dict[str, str], folder: str, slow: Iterable[str]) -> int:
        """The number of a new kernel's process, which has imported the modules ``slow``."""
        order = {"argv": argv, "env": env, "folder": folder, "slow": list(slow)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@cache
def server(env: frozenset[tuple[str, str]]) -> Server:
    """This process's server for an environment."""
    return Server(dict(env))


class Forked:
    """A kernel's process, as Jupyter asks about one (``subprocess.Popen``). It is the server's child, not ours."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        """None while it lives. How it ended only the server could know."""
        try:
            return 1 if psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return 1

    def wait(self) -> int:
        """Jupyter asks when it has ended already."""
        return self.poll() or 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Forking(LocalProvisioner):
    """Starts a kernel by a fork, where Jupyter's own provisioner starts Python."""

    slow: tuple[str, ...] = ()

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Like its parent's; ``cmd`` is ``python … -m ipykernel_launcher …``, of which the arguments count."""
        env, argv = kwargs["env"], cmd[cmd.index("ipykernel_launcher") :]
        once = {
            name: value for name, value in env.items() if not name.startswith(("BOOK_", "FTDOCS_", "JPY_"))
        }
        pid = server(frozenset(once.items())).fork(argv, env, str(kwargs["cwd"]), self.slow)
        self.process = Forked(pid)
        self.pid = self.pgid = pid  # it leads a group of its own
        self.cwd = kwargs["cwd"]
        return self.connection_info


def forking_manager(distributions: Iterable[str]) -> AsyncKernelManager:
    """Jupyter's manager of a kernel, which is forked when it starts; it has imported what of these is slow."""
    manager = AsyncKernelManager(kernel_name="python3")
    manager.provisioner = Forking(kernel_id="", kernel_spec=manager.kernel_spec, parent=manager)
    manager.provisioner.slow = tuple(m for name in SLOW if name in set(distributions) for m in SLOW[name])
    return manager


# What the server does ---------------------------------------------------------------------------------------------


def serve() -> None:
    """Fork a kernel for every line on standard input, until there are no more."""
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # a kernel ends when this process does
    from ipykernel.kernelapp import launch_new_instance

    for line in sys.stdin:
        reap()
        order = json.loads(line)
        # What libraries miss they say again when they are used, and what cannot be imported the page says itself.
        with contextlib.redirect_stderr(io.StringIO()):
            for module in order["slow"]:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
        if child := os.fork():
            print(child, flush=True)
        else:
            become(order)
            launch_new_instance()
            return


def become(order: dict[str, Any]) -> None:
    """Make a forked process the one that was ordered: its own session, environment, folder and arguments."""
    os.setsid()
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for the process's whole life
    os.dup2(sys.stdin.fileno(), 0)
    os.dup2(2, 1)  # the pipe to whoever gives the orders
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    sys.argv = order["argv"]
    # A new process draws its own numbers. (Python's own generator sees to that itself.)
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def reap() -> None:
    """Let go of kernels that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:  # there is none
        pass


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, which is no place that a page may import from
    serve()
