"""Flags and YAML: whatever is wrong with them is one sentence, and --help fits two screens.

`KitParser` makes flags of dataclasses, for the trainers; `Parser` is argparse for the scripts that measure.
"""

import argparse
import ast
import difflib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

from kit.errors import UserError
from kit.files import user_path
from kit.runs import read_config, refuse_change

BASE = "base"  # how the reference model is called
# What a resumed run may be given anew. All else makes another experiment; its models the session compares by name.
MAY_CHANGE = {"max_steps", "rounds", "save_steps", "save_total_limit", "eval_every"}
MAY_CHANGE |= {"wandb", "wandb_project", "report_to", "merge_lora", "unchecked"}
COMPARED_ELSEWHERE = {
    "model",
    "sentiment_model",
    "output_dir",
    "run_name",
}  # the last two are where the run is
# They let code run that came with a model. A run folder from somebody else may hold them too.
REFUSED = {"--trust_remote_code", "--model_init_kwargs"}

# ---- dataclasses as flags ----------------------------------------------------------------------------------


class KitParser(HfArgumentParser):
    """`HfArgumentParser` for several dataclasses, with a short help and strict input.

    `--config FILE.yaml` holds any flag as a key; flags on the command line win. A YAML key is turned into its
    flag and parsed like one, so types and choices are checked the same way. `--resume RUN` starts from the flags
    that run was given. `inherited` finds the flags that a subclass of these dataclasses takes besides, which is parsed
    once its library is imported: they are known here, and no more.

    `argv` holds all flags of the last parse, the file's first: what a run must remember to be resumed.
    """

    def __init__(
        self,
        dataclass_types: Iterable[type],
        description: str,
        inherited: Callable[[], set[str]] | None = None,
    ) -> None:
        self.look_up_inherited = inherited
        self.argv: list[str] = []
        super().__init__(
            list(dataclass_types),
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE.yaml] [--flag value ...]",
            description=description.splitlines()[0],
            allow_abbrev=False,  # `--kl_co 2` must be an error, not --kl_coef
        )
        self.add_argument("--help_all", action="help", help="every flag there is, TRL's included")

    def check(self, args: Sequence[str] | None = None) -> None:
        """Answer --help, and refuse what can be seen to be wrong (`UserError`)."""
        args = sys.argv[1:] if args is None else args
        if "--help_all" not in args:
            self.parse(args)

    def parse(self, args: Sequence[str] | None = None) -> tuple[Any, ...]:
        """The dataclasses, in order. Raises `UserError` for anything that does not fit."""
        args = [part for arg in (sys.argv[1:] if args is None else args) for part in split(arg)]
        config, args = take(args, "--config")
        resume, given = take([*(self._flags_of(config) if config else []), *args], "--resume")
        remembered = _remembered(resume) if resume else []
        self.argv = [*remembered, *given]
        self._refuse_unknown(self.argv)
        outputs = self._dataclasses(self.argv + (["--resume", resume] if resume else []))
        if resume:
            self._refuse_another_experiment(resume, self._dataclasses(remembered), outputs, given)
        return outputs

    def _dataclasses(self, argv: list[str]) -> tuple[Any, ...]:
        try:
            outputs = self.parse_args_into_dataclasses(
                argv, look_for_args_file=False, return_remaining_strings=self.look_up_inherited is not None
            )
        except ValueError as error:  # a dataclass's own checks
            raise UserError(" ".join(str(error).split())) from None
        return outputs[: len(self.dataclass_types)]

    def _refuse_another_experiment(
        self, run: str, before: tuple[Any, ...], after: tuple[Any, ...], given: list[str]
    ) -> None:
        """Of the flags in `given`, only those of MAY_CHANGE may differ from what the run had. Raises `UserError`."""
        for flag in filter(self._option_string_actions.get, map(_spelled, given)):
            name = self._option_string_actions[flag].dest
            if name in MAY_CHANGE | COMPARED_ELSEWHERE:
                continue
            was, now = (next(getattr(d, name) for d in ds if hasattr(d, name)) for ds in (before, after))
            if was != now:
                refuse_change(run, f"--{name}", was, now)

    def _flags_of(self, path: str) -> list[str]:
        """The flags a YAML file stands for; a key without a value stands for none."""
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--config {path}: cannot be read as YAML ({reason})") from None
        if not isinstance(settings, dict):
            raise UserError(
                f"--config {path}: needs lines like `kl_coef: 0.05`, a mapping of flags to values"
            )
        flags: list[str] = []
        unknown = [str(key) for key in settings if not self._knows(f"--{key}")]
        if len(unknown) > 1:
            raise UserError(
                f"--config {path}: unknown keys {', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}; was the file "
                "written for another script?"
            )
        for key, value in settings.items():
            if not self._knows(f"--{key}"):
                raise UserError(f"--config {path}: unknown key {key!r}{self._suggest(f'--{key}')}")
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            flags += [f"--{key}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
        return flags

    @cached_property
    def inherited(self) -> set[str]:
        """Flags of the library that is not imported yet; looked up only where a flag is none of ours."""
        return {f"--{name}" for name in self.look_up_inherited()} if self.look_up_inherited else set()

    def _knows(self, flag: str) -> bool:
        return _spelled(flag) in self._option_string_actions or _spelled(flag) in self.inherited

    def _refuse_unknown(self, args: Sequence[str]) -> None:
        for arg in args:
            if _spelled(arg) in REFUSED:
                raise UserError(f"{arg}: code that comes with a model is never run here; leave the flag out")
            if arg.startswith("--") and not self._knows(arg):
                raise UserError(f"unknown flag {arg}{self._suggest(arg)}")

    def _suggest(self, flag: str) -> str:
        # the kit's own flags first: nobody who mistypes one means a flag of TRL's
        for known in (self._option_string_actions, self.inherited):
            if close := difflib.get_close_matches(flag, known, n=1):
                return f"; did you mean {close[0]}?"
        return "; --help lists the kit's flags, --help_all every flag"

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def field_names(package: str, *files: str) -> set[str]:
    """Names of all annotated class fields in source files of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: pip install -r requirements.txt")
    folder = Path(spec.submodule_search_locations[0])
    trees = [ast.parse((folder / name).read_text(encoding="utf-8")) for name in files]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    lines = [line for node in classes for line in node.body if isinstance(line, ast.AnnAssign)]
    return {line.target.id for line in lines if isinstance(line.target, ast.Name)}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of every flag, and no metavar for switches: half the height."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag = action.option_strings[0] if "-h" not in action.option_strings else "-h, --help"
        if action.nargs in (0, "?"):
            return flag
        values = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or "").upper()
        return f"{flag} {values}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default in (None, False, argparse.SUPPRESS) or action.nargs == 0
        return action.help if plain else super()._get_help_string(action)


def _spelled(arg: str) -> str:
    """A flag with underscores: argparse takes --kl-coef too."""
    return "--" + arg[2:].replace("-", "_") if arg.startswith("--") else arg


def split(arg: str) -> list[str]:
    """`--flag=value` -> `--flag`, `value`, for --config too."""
    if arg.startswith("--") and "=" in arg:
        flag, _, value = arg.partition("=")
        return [flag, value]
    return [arg]


def _remembered(run: str) -> list[str]:
    """The flags that the run folder `run` was given, one part at a time. They are input like any other."""
    argv = read_config(run).get("argv", [])
    if not isinstance(argv, list) or not all(isinstance(part, str) for part in argv):
        raise UserError(f"{run}/config.json: argv must be a list of strings")
    return take([part for arg in argv for part in split(arg)], "--resume")[1]


def take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """(the value of `flag` or None, all the others). Raises `UserError` for a flag without one."""
    if flag not in args:
        return None, args
    at = args.index(flag)
    if at + 1 == len(args) or args[at + 1].startswith("--"):
        raise UserError(f"{flag} needs a path")
    return args[at + 1], args[:at] + args[at + 2 :]


# ---- scripts that measure ----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse with one-sentence errors, and the flags that mean the same in every script that measures."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def add_sampling_flags(self) -> None:
        """What is sampled, from which reference, and who scores it."""
        add = self.add_argument
        n: dict[str, Any] = {"type": at_least_1, "metavar": "N"}
        add("--num_samples", default=4, help="completions per prompt (default: 4)", **n)
        add("--prompts", default="held_out",
            help="held_out (default), builtin (training's; fit, tuning: its parts), imdb, a file")  # fmt: skip
        add("--num_prompts", help="only the first N prompts", **n)
        add("--max_new_tokens", default=40, help="longest completion (default: 40)", **n)
        add("--temperature", type=positive, default=1.0, metavar="T", help="of the sampler (default: 1.0)")
        add(
            "--seed", type=at_least_0, default=0, help="of the sampler, the same for every model (default: 0)"
        )
        add("--batch_size", default=128, help="sampled at once (default: 128)", **n)
        add("--model", type=user_path, default="auto",
            help="the reference: auto (what the runs started from), mini, id, or path")  # fmt: skip
        add("--sentiment_model", type=user_path, default="auto",
            help="the reward model: auto (what the runs used), mini, id, path")  # fmt: skip


def named_paths(pairs: Sequence[str]) -> dict[str, str]:
    """{name: path} of NAME=PATH arguments; `base`, the reference, has no path and is left out.

    Raises:
        UserError: a name that is none, that is given twice, or that is base's.
    """
    paths: dict[str, str] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if pair == BASE:
            continue
        if not path or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name, re.ASCII):
            raise UserError(
                f"{pair}: give NAME=PATH, such as kl=outputs/kl; names have letters, digits, . _ + -"
            )
        if name == BASE:
            raise UserError(
                f"{pair}: base is the reference model; choose it with --model, or take another name"
            )
        if name in paths:
            raise UserError(f"the name {name} is given twice")
        paths[name] = user_path(path)
    return paths


def at_least_1(text: str) -> int:
    """An argparse type: an integer of 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def at_least_0(text: str) -> int:
    """An argparse type: an integer of 0 or more."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return int(text)


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)
