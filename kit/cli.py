"""Flags and YAML through one parser: whatever is wrong with them is one sentence, and --help fits two screens."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trl import TrlParser

from kit.errors import UserError
from kit.runs import read_config


class KitParser(TrlParser):
    """`TrlParser` for several dataclasses, with a short help and strict input.

    `--config FILE.yaml` holds any flag as a key; flags on the command line win. A YAML key is turned into its
    flag and parsed like one, so types and choices are checked the same way. `--resume RUN` starts from the flags
    that run was given. `shown` are the flags --help lists; --help_all lists every flag there is.

    `argv` holds all flags of the last parse, the file's first: what a run must remember to be resumed.
    """

    def __init__(self, dataclass_types: Iterable[type], shown: Iterable[str], **kwargs: Any) -> None:
        self.shown, self.argv = set(shown), []
        super().__init__(
            dataclass_types,
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE.yaml] [--flag value ...]",
            allow_abbrev=False,  # `--kl_co 2` must be an error, not --kl_coef
            **kwargs,
        )
        self.add_argument("--help_all", action="help", help="every flag there is, TRL's included")

    def parse_args_and_config(self, args: Sequence[str] | None = None) -> tuple[Any, ...]:
        """The dataclasses, in order. Raises `UserError` for anything that does not fit."""
        args = [part for arg in (sys.argv[1:] if args is None else args) for part in _split(arg)]
        config, args = _take(args, "--config")
        resume = _value_of(args, "--resume")
        remembered = read_config(resume).get("argv", []) if resume else []
        self.argv = [*remembered, *(self._flags_of(config) if config else []), *args]
        self._refuse_unknown(self.argv)
        try:
            outputs = self.parse_args_into_dataclasses(self.argv, look_for_args_file=False)
        except ValueError as error:  # a dataclass's own checks
            raise UserError(" ".join(str(error).split())) from None
        return outputs[: len(self.dataclass_types)]

    def _flags_of(self, path: str) -> list[str]:
        """The flags a YAML file stands for; its `env:` block goes to the environment, as in TrlParser."""
        import yaml

        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(
                f"--config {path}: cannot be read as YAML ({' '.join(str(error).split())})"
            ) from None
        if not isinstance(settings, dict):
            raise UserError(
                f"--config {path}: needs lines like `kl_coef: 0.05`, a mapping of flags to values"
            )
        env = settings.pop("env", None) or {}
        if not isinstance(env, dict):
            raise UserError(f"--config {path}: env needs a mapping of variable names to values")
        os.environ.update({str(key): str(value) for key, value in env.items()})
        flags: list[str] = []
        for key, value in settings.items():
            if f"--{key}" not in self._option_string_actions:
                raise UserError(f"--config {path}: unknown key {key!r}{self._suggest(f'--{key}')}")
            values = value if isinstance(value, list) else [value]
            flags += [f"--{key}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
        return flags

    def _refuse_unknown(self, args: Sequence[str]) -> None:
        for arg in args:
            if arg.startswith("--") and arg not in self._option_string_actions:
                raise UserError(f"unknown flag {arg}{self._suggest(arg)}")

    def _suggest(self, flag: str) -> str:
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        return (
            f"; did you mean {close[0]}?"
            if close
            else "; --help lists the kit's flags, --help_all every flag"
        )

    def format_help(self) -> str:
        if "--help_all" not in sys.argv:
            for action in self._actions:
                if action.dest not in self.shown | {"help", "help_all"}:
                    action.help = argparse.SUPPRESS
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of every flag, and no metavar for switches: half the height."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag = action.option_strings[0] if "-h" not in action.option_strings else "-h, --help"
        if action.nargs in (0, "?"):
            return flag
        values = "|".join(map(str, action.choices)) if action.choices else (action.metavar or "").upper()
        return f"{flag} {values}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default in (None, False, argparse.SUPPRESS) or action.nargs == 0
        return action.help if plain else super()._get_help_string(action)


def _split(arg: str) -> list[str]:
    """`--flag=value` -> `--flag`, `value`, for --config too."""
    if arg.startswith("--") and "=" in arg:
        flag, _, value = arg.partition("=")
        return [flag, value]
    return [arg]


def _value_of(args: Sequence[str], flag: str) -> str | None:
    if flag not in args:
        return None
    at = list(args).index(flag) + 1
    if at == len(args) or args[at].startswith("--"):
        raise UserError(f"{flag} needs a path")
    return args[at]


def _take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    value = _value_of(args, flag)
    if value is None:
        return None, args
    at = args.index(flag)
    return value, args[:at] + args[at + 2 :]
