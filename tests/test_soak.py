"""The soak in short: one kill, and one damaged file, of a run with all weights and of SFT. `make soak` does it all.

pytest tests/test_soak.py
"""


def test_a_killed_run_resumed_is_the_run_that_was_not_killed(run_script):
    flags = "-m tests.soak --kills 1 --only full sft --damage"
    done = run_script(*flags.split(), "optimizer.pt torn", "model.safetensors emptied")
    assert done.returncode == 0, done.stdout + done.stderr
    full, sft = (row.split(" | ") for row in done.stdout.splitlines() if row.startswith("| "))
    assert full[1] == sft[1] == "1 of 1" and full[-1] == sft[-1] == "1 of 1 |"
    assert full[4] == "2 of 2" and sft[4] == "1 of 1"  # SFT keeps no optimizer
