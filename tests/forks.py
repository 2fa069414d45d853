"""A Python that has imported the libraries, and a fork of it for every script that a test runs.

A start of Python with torch and TRL costs nine seconds, a fork a tenth.

No module of the kit is imported before the fork, which has the arguments, environment, folder and streams of its
request. What differs from a start by the shell: the order of imports, and what Python itself or a library reads from
the environment when it is imported (PYTHONPATH is seen to). Tests of these start a real process.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Forks:
    """The server as the tests see it. The first run starts it, with `env` for what libraries read when imported."""

    def __init__(self, **env: str) -> None:
        self.server: subprocess.Popen | None = None
        self.env = env

    def run(self, args: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float):
        """As `subprocess.run([sys.executable, *args], capture_output=True, text=True, stdin=DEVNULL, ...)`.

        The result has one thing more, its `processor_seconds`.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; the process and its group are killed.
        """
        if self.server is None:
            self.server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.env},
                start_new_session=True,  # Ctrl-C is for the tests, which end it
            )
        requests, answers = self.server.stdin, self.server.stdout
        command = [sys.executable, *args]
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {"args": args, "env": dict(env), "cwd": str(cwd), "streams": [str(out), str(err)]}
            requests.write(json.dumps(request).encode() + b"\n")
            pid, ended = int(answers.readline()), False
            try:
                ended = bool(select.select([answers], [], [], timeout)[0])
            finally:
                if not ended:
                    os.killpg(pid, signal.SIGKILL)
                status, seconds = answers.readline().split()
            said = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
        if not ended:
            raise subprocess.TimeoutExpired(command, timeout, *said)
        done = subprocess.CompletedProcess(command, int(status), *said)
        done.processor_seconds = float(seconds)
        return done

    def close(self) -> None:
        if self.server is not None:
            self.server.communicate()


def serve() -> dict:
    """Fork for every request, and answer with the process id and the exit status. Returns in the forks."""
    for line in sys.stdin:
        request = json.loads(line)
        if not (pid := os.fork()):
            return request
        print(pid, flush=True)
        _, status, used = os.wait4(pid, 0)
        print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
    sys.exit()


def become(args: Sequence[str], env: Mapping[str, str], cwd: str, streams: Sequence[str]) -> None:
    """Run `python ARGS` in this process, and end it."""
    os.setsid()
    # After a fork torch makes its pool of threads anew: here, before two threads at once would find half of it
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    module = args[0] == "-m"
    sys.argv = list(args[module:])
    sys.path[0] = cwd if module else str(Path(cwd, args[0]).parent)
    sys.path[1:1] = env.get("PYTHONPATH", "").split(os.pathsep) if "PYTHONPATH" in env else []
    status = 0
    try:
        if module:
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(args[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # As Python ends, less a second in which it takes the libraries apart
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    from kit.base.screen import quiet

    quiet()
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import torch
    import trl.trainer.grpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    del sys.path[1]
    for name in [name for name in sys.modules if name.partition(".")[0] == "kit"]:
        del sys.modules[name]  # the script's own may be another
    gc.freeze()
    become(**serve())
