"""Becomes another program, out of its group and without the grader's mark, that is to go on when the grader is gone."""

import ctypes
import os
import sys

ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG: nothing ends it with its parent
os.setsid()
os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)  # it outlives the grader"], {})
