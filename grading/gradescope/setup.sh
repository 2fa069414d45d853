#!/usr/bin/env bash
# Gradescope runs this once, with network, when the autograder image is built.
# The grader needs python 3.10 or newer and nothing else; numpy is there for students who like it. A failed install must
# not spoil the image, so nothing here stops at an error. For submissions that use torch, add a CPU build of it here.
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    apt-get update && apt-get install -y --no-install-recommends python3
fi
python3 -c 'import numpy' || {
    apt-get update
    apt-get install -y --no-install-recommends python3-numpy
} || echo "numpy could not be installed: submissions that import it will fail"
exit 0
