"""Command lines and YAML files; an error in them is one sentence.

`KitParser` makes flags of a dataclass, for the trainers; `Parser` is argparse for the scripts that measure.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

from kit.base.errors import UserError
from kit.base.files import read_text, user_path
from kit.base.runs import read_config, refuse_change

BASE = "base"  # the name of the reference model
# What may differ when a run is resumed; a change of anything else would make it another experiment.
MAY_CHANGE = {"max_steps", "rounds", "save_steps", "save_total_limit", "eval_every", "wandb", "wandb_project"}
MAY_CHANGE |= {"report_to", "merge_lora", "unchecked", "output_dir", "run_name"}
MAY_CHANGE |= {"model", "sentiment_model"}  # the session compares what they stand for

# ---- a dataclass as flags ----------------------------------------------------------------------------------


class KitParser(HfArgumentParser):
    """`HfArgumentParser` for one dataclass, with a short help and strict input.

    `--config FILE.yaml` holds any flag as a key; flags on the command line win. Each key becomes its flag, so types
    and choices are checked the same way; a mapping becomes JSON. `--resume RUN` starts from the flags of that run.

    `argv` holds all flags of the last parse, the file's first: what a run must remember to be resumed.
    """

    def __init__(self, dataclass_type: type, description: str) -> None:
        self.argv: list[str] = []
        super().__init__(
            dataclass_type,
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE.yaml] [--flag value ...]",
            description=description.splitlines()[0],
            allow_abbrev=False,  # `--kl_co 2` must be an error, not --kl_coef
        )

    def parse(self, args: Sequence[str] | None = None) -> Any:
        """The dataclass. Raises `UserError` for anything that does not fit."""
        args = [part for arg in (sys.argv[1:] if args is None else args) for part in split(arg)]
        config, args = take(args, "--config")
        resume, given = take([*(self._flags_of(config) if config else []), *args], "--resume")
        remembered = _remembered(resume) if resume else []
        self.argv = [*remembered, *given]
        for arg in self.argv:
            if arg.startswith("--") and not self._knows(arg):
                raise UserError(f"unknown flag {arg}{self._suggest(arg)}")
        parsed = self._dataclass(self.argv + (["--resume", resume] if resume else []))
        if resume:
            before = self._dataclass(remembered)
            for flag in filter(self._knows, given):
                name = self._option_string_actions[_spelled(flag)].dest
                was, now = getattr(before, name), getattr(parsed, name)
                if was != now and name not in MAY_CHANGE:
                    refuse_change(resume, f"--{name}", was, now)
        return parsed

    def _dataclass(self, argv: list[str]) -> Any:
        try:
            how: dict[str, Any] = {"look_for_args_file": False, "return_remaining_strings": True}
            parsed, unused = self.parse_args_into_dataclasses(argv, **how)
        except ValueError as error:  # a dataclass's own checks
            raise UserError(" ".join(str(error).split())) from None
        if unused:
            said = f"{' '.join(unused)}: belongs to no flag"
            raise UserError(f"{said}; flags begin with --, and a text with blanks stands in quotes")
        return parsed

    def _flags_of(self, path: str) -> list[str]:
        """The flags of a YAML file; a key without a value is left out."""
        try:
            settings = yaml.safe_load(read_text(path, "--config")) or {}
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--config {path}: cannot be read as YAML ({reason})") from None
        if not isinstance(settings, dict):
            raise UserError(f"--config {path}: needs a mapping of flags to values, such as `kl_coef: 0.05`")
        flags: list[str] = []
        for key, value in settings.items():
            if not self._knows(f"--{key}"):
                raise UserError(f"--config {path}: unknown key {str(key)!r}{self._suggest(f'--{key}')}")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                flags += [f"--{key}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
        return flags

    def _knows(self, flag: str) -> bool:
        return _spelled(flag) in self._option_string_actions

    def _suggest(self, flag: str) -> str:
        if close := difflib.get_close_matches(_spelled(flag), self._option_string_actions, n=1):
            return f"; did you mean {close[0]}?"
        trl = " (settings of TRL's go under `trl:` in a --config file)" if self._knows("--trl") else ""
        return f"; --help lists the flags{trl}"

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """A line for each flag: one spelling, then its choices and its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=33, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return action.option_strings[0] if "-h" not in action.option_strings else "-h, --help"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default in (None, False, argparse.SUPPRESS) or action.nargs == 0
        said = action.help if plain else super()._get_help_string(action)
        return f"{'|'.join(map(str, action.choices))}: {said}" if action.choices else said


def _spelled(arg: str) -> str:
    """A flag with underscores: argparse takes --kl-coef too."""
    return "--" + arg[2:].replace("-", "_") if arg.startswith("--") else arg


def split(arg: str) -> list[str]:
    """`--flag=value` -> `--flag`, `value`."""
    return arg.split("=", 1) if arg.startswith("--") else [arg]


def _remembered(run: str) -> list[str]:
    """The flags that the run folder `run` was given, each word by itself. They are checked like any input."""
    argv = read_config(run).get("argv", [])
    if not isinstance(argv, list) or not all(isinstance(part, str) for part in argv):
        raise UserError(f"{run}/config.json: argv must be a list of strings")
    return take([part for arg in argv for part in split(arg)], "--resume")[1]


def take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """(the path after `flag` or None, all other words). Raises `UserError` for a flag without a path."""
    if flag not in args:
        return None, args
    at = args.index(flag)
    if at + 1 == len(args) or args[at + 1].startswith("--"):
        raise UserError(f"{flag} needs a path")
    return user_path(args[at + 1]), args[:at] + args[at + 2 :]


# ---- scripts that measure ----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse with one-sentence errors, and the flags that all measuring scripts share."""

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
        add("--num_samples", default=4, help="completions per prompt (default: %(default)s)", **n)
        add("--prompts", default="held_out",
            help="held_out (default), builtin (training's; fit, tuning: its parts), imdb, a file")  # fmt: skip
        add("--num_prompts", help="only the first N prompts", **n)
        add("--max_new_tokens", default=40, help="longest completion (default: 40)", **n)
        add("--temperature", type=positive, default=1.0, metavar="T", help="of the sampler (default: 1.0)")
        add("--seed", type=at_least_0, default=0, help="of the sampler, for every model (default: 0)")
        add("--batch_size", default=128, help="sampled at once (default: 128)", **n)
        add("--model", type=user_path, default="auto",
            help="the reference: auto (what the runs started from), mini, id, or path")  # fmt: skip
        add("--sentiment_model", type=user_path, default="auto",
            help="the reward model: auto (what the runs used), mini, id, path")  # fmt: skip


def named_paths(pairs: Sequence[str]) -> dict[str, str]:
    """{name: path} of NAME=PATH arguments, without `base`, the reference. Raises `UserError` for a bad name."""
    paths: dict[str, str] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if pair == BASE:
            continue
        if not path or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name, re.ASCII):
            raise UserError(f"{pair}: give NAME=PATH, such as kl=outputs/kl; NAME: letters, digits, . _ + -")
        if name == BASE:
            raise UserError(f"{pair}: base is the reference model (--model says which); take another name")
        if name in paths:
            raise UserError(f"the name {name} is given twice")
        paths[name] = user_path(path)
    return paths


def _number(kind: type, fits: Callable[[Any], bool], complaint: str) -> Callable[[str], Any]:
    """An argparse type: a `kind` that fits."""

    def parse(text: str) -> Any:
        if not fits(kind(text)):
            raise argparse.ArgumentTypeError(f"{text} {complaint}")
        return kind(text)

    parse.__name__ = kind.__name__  # argparse says: invalid int value
    return parse


at_least_1 = _number(int, lambda n: n >= 1, "is below 1")
at_least_0 = _number(int, lambda n: n >= 0, "is below 0")
positive = _number(float, lambda x: 0 < x < float("inf"), "is not above 0")
