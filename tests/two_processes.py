"""Two processes as torchrun starts them, forked from one that has the libraries: a start of three Pythons is saved.

python -m tests.two_processes MODULE FLAGS
"""

import os
import runpy
import signal
import socket
import sys

import torch


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main() -> int:
    """Fork both and wait; once one fails, the other is ended, as torchrun does. Returns the first bad status, or 0."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank in "01":
        if not (pid := os.fork()):
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            torch.set_num_threads(1)  # as in tests/forks.py
            sys.argv = sys.argv[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            sys.exit()
        ranks.append(pid)
    failed = 0
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if status and not failed:
            failed = os.waitstatus_to_exitcode(status)
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    return failed


if __name__ == "__main__":
    sys.exit(main())
