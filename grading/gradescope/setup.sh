#!/usr/bin/env bash
# Gradescope runs this once, as root and with network, when the autograder image is built.
# Students have Python 3.11 or newer, so they are graded with one: 3.12 where the image's Ubuntu has it (24.04), else
# 3.11 (22.04, whose own python3 is 3.10), else its own if that is new enough. In an environment of its own, with numpy
# for students who like it: nothing else can be imported by a submission, whatever is installed. A failed install must
# not spoil the image, so nothing here stops at an error.
venv="$(cd "$(dirname "$0")/.." && pwd)/venv"
apt-get update
for python in python3.12 python3.11 python3; do
    apt-get install -y --no-install-recommends "$python-venv" &&
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &&
        "$python" -m venv --clear "$venv" && break
done
"$venv/bin/python" -m pip install numpy || echo "numpy could not be installed: submissions that import it will fail"
exit 0
