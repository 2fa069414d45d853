"""One training run, from its flags to its folder: what train.py, PPO and SFT share, and `RunSession` the reward model.

Sampling, the call of the reward and the update are in each method's own file. In the order of use:

    session = Session("ppo", args, PARSER.argv)      models chosen, seed set, scorer loaded
    policy, tokenizer, reference = session.load_models()   train.py loads them itself
    prompts = session.load_prompts(policy, tokenizer)
    session.open_run("ppo-0.1")                            the run folder, made or resumed
    session.begin(policy, tokenizer, reference, ...)       checks of a resumed run, config.json, tracker
    with session.training(policy, tokenizer):              stopped: says how to go on; finished: saves final/
        session.start(policy)                              resumed: logs cut to the checkpoint; validation
        session.validate(policy, step)
        session.log(step, metrics)
        session.show(step, total, "reward 0.5")
"""

import ast
import atexit
import inspect
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from data import check_prompts, load_prompts, validation_prompts
from kit.base.errors import Diverged, Stopped, UserError, no_room, on_stop_signals, signal_name
from kit.base.files import digest, read_text, remove, rename, sha256
from kit.base.flags import Arguments, RunArguments
from kit.base.metrics import REWARD_CONFIG, composite_reward, load_reward_weights
from kit.base.runs import MANIFEST, STATE, Run, read_config, read_metrics, refuse_change, write_manifest
from kit.base.screen import as_word, clock
from kit.lm.loading import Tokenizer
from kit.lm.log_probs import LanguageModel
from kit.lm.models import (
    adapter_base,
    context,
    load_policy,
    load_reference,
    lora_config,
    resolve_models,
    save_policy,
)
from kit.measure.frontier import price
from kit.measure.measuring import Bench
from kit.measure.reference import kept_samples
from kit.train.tracking import Tracker, open_tracker
from kit.train.validation import VALIDATION_SEED, Validation
from reward_utils import RewardFunction, Scorer, make_reward_function
from sentiment import load_reward_model, load_scorer, word_count_score

MODEL_FILES = ("*.safetensors", "*config.json", "tokenizer.json")


def reward_without_penalty(args: Arguments, score: Scorer, tokenizer: Tokenizer) -> RewardFunction:
    """The reward of the baselines: no KL penalty, and `shaped` is the composite reward R, not the student's."""
    ours = SimpleNamespace(shaped_reward=composite_reward)
    return make_reward_function(
        score,
        tokenizer,
        reward_shaping=args.reward_shaping,
        sparse_threshold=args.sparse_threshold,
        negate=args.negate_reward,
        student=ours,
    )


def _settings(args: RunArguments) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name != "predict"}


def prediction(text: str | None, resumed: Run | None = None) -> dict[str, str] | None:
    """`--predict` as config.json keeps it: the text and its time, UTC in ISO 8601. A `resumed` run keeps its own."""
    if resumed is not None:
        return read_config(resumed.path).get("prediction")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"text": text.strip(), "time": now} if text and text.strip() else None


def fingerprint(spec: str) -> str | None:
    """A digest of the model's files, or its commit on the Hub; None if it is in no cache."""
    path = Path(spec)
    if not path.exists():
        cached = try_to_load_from_cache(spec, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else None
    path = path / "final" if (path / "final").is_dir() else path
    if not path.is_dir():
        return sha256(path)
    parts = [sha256(file) for file in sorted({f for pattern in MODEL_FILES for f in path.glob(pattern)})]
    if (adapter := path / "adapter_config.json").is_file():
        parts.append(str(fingerprint(adapter_base(adapter))))
    return digest(parts)


def reward_sources(reward: RewardFunction) -> dict[str, str]:
    """{file: digest} of the user's part of the reward: rewards.py without its comments, or the weights of R."""
    found = {}
    for function in (reward.shape, reward.penalty):
        if function is composite_reward:
            found[f"configs/{REWARD_CONFIG.name}"] = digest(load_reward_weights())
        elif function is not None and function.__module__ != make_reward_function.__module__:  # not the kit's
            found |= source_digest(function)
    return found


def source_digest(function: Callable[..., Any]) -> dict[str, str]:
    """{file: digest without its comments} of the file that `function` is written in."""
    file = Path(inspect.unwrap(function).__code__.co_filename)
    return {file.name: digest(ast.unparse(ast.parse(read_text(file, "the reward"))))}


def largest(tensors: Iterable[torch.Tensor]) -> float:
    """The largest absolute value in all of them; NaN if there is one, 0 for none."""
    norm = torch.nn.utils.get_total_norm(list(tensors), norm_type=float("inf"))
    norm = getattr(norm, "full_tensor", lambda: norm)()  # of a sharded model
    return float(norm)


class Validates(Protocol):
    def run(self, model: Any, step: int) -> None:
        """Measure the model, log and show the numbers."""


class RunSession:
    """Folder, logs and checkpoints of one run. In a launch of several processes only the main one writes.

    `names` are those of the models it starts from, as config.json has them. `digests` are those of the inputs: a
    resumed run must have the same. `checkpoint` is where a resumed run goes on, `state` its trainer_state.json,
    `first_step` the step it was saved after (a new run: None, {} and 0).
    """

    run: Run
    lock: AbstractContextManager[Any]
    validation: Validates

    def __init__(self, method: str, args: RunArguments, argv: list[str], names: dict[str, str]) -> None:
        self.started = time.monotonic()
        self.args = args
        # one process, unless launched by accelerate or torchrun; never Apple's MPS, which it would choose
        process = PartialState(cpu=not torch.cuda.is_available())
        self.device, self.is_main = process.device, process.is_main_process
        self.checkpoint: Path | None = None
        self.state: dict[str, Any] = {}
        if args.resume:
            self.run = Run.open(args.resume)
            self.lock = self.run.lock() if self.is_main else nullcontext()
            self.checkpoint, skipped = self.run.last_checkpoint()
            if skipped and self.is_main:
                print(f"{'; '.join(skipped)}: going on from {self.checkpoint.name}", file=sys.stderr)
            self.state = json.loads((self.checkpoint / STATE).read_text(encoding="utf-8"))
        self.first_step = int(self.state.get("global_step", 0))
        self.config: dict[str, Any] = {"method": method, "argv": argv, **_settings(args), **names}
        self.config["processes"] = process.num_processes
        if args.resume:
            stored = {"processes": 1} | read_config(args.resume)
            for key in ("method", *names, "processes"):  # `auto` may be another model on another machine
                if stored.get(key) != self.config[key]:
                    refuse_change(args.resume, key, stored.get(key), self.config[key])
        set_seed(args.seed)
        self.tracker = Tracker()
        self.report_to = "wandb" if args.wandb else args.report_to
        self.digests: dict[str, str | None] = {}
        self.validated = -1  # the last validated step
        self.asked_to_stop: int | None = None  # the signal

    def refuse_finished(self, done: int, total: int, flag: str) -> None:
        """Raises `UserError` if a resumed run has done all that `--flag` asks for."""
        if self.checkpoint and (done > total or (done == total and self.run.final.is_dir())):
            said = f"{done} of {total} {flag.removeprefix('max_')} done"
            raise UserError(f"--resume {self.run.path}: {said}; to go on, give --{flag} more than {done}")

    def _refuse_changed_inputs(self) -> None:
        """Raises `UserError` if an input of a resumed run has changed since it began."""
        stored = read_config(self.run.path).get("digests", {})  # none in a run of an earlier version
        if changed := [name for name, value in self.digests.items() if stored.get(name, value) != value]:
            names = " and ".join(f"{name} {self.config.get(name, '')}".strip() for name in changed)
            said = f"changed since this run began: {names}; restore it, or start a new run"
            raise UserError(f"--resume {self.run.path}: {said}")

    # ---- the run folder

    def open_run(self, name: str) -> Run:
        """The run's folder: the resumed one, or a new one called `name`, for all processes."""
        if not self.args.resume:
            paths = [str(Run.create(self.args.output_dir, name).path) if self.is_main else None]
            self.run = Run(Path(broadcast_object_list(paths)[0]))
            if self.is_main:
                atexit.register(self.run.remove_if_unused)
            self.lock = self.run.lock() if self.is_main else nullcontext()
        return self.run

    def record(self, training: dict[str, Any] | None = None) -> None:
        """Checks of a resumed run, a new run's config.json, and the tracker. `training` holds all settings, if they
        are not all flags."""
        if self.checkpoint:
            self._refuse_changed_inputs()
        self.config |= {"training": training or _settings(self.args), "digests": self.digests}
        if predicted := prediction(self.args.predict, self.run if self.checkpoint else None):
            self.config["prediction"] = predicted
        if not self.checkpoint:
            self.run.write_config(self.config)
        project, run = self.args.wandb_project, self.run.path
        self.tracker = open_tracker(self.report_to, project, run, self.config, self.first_step)

    def start(self, policy: LanguageModel) -> None:
        """Validate at step 0. When resuming: drop what was written after the checkpoint, which has been loaded."""
        if self.checkpoint and self.is_main:
            self.run.truncate_after(self.first_step)
            self.run.write_config(self.config)
            for step, folder in self.run.checkpoints():
                if step > self.first_step:  # not whole
                    self.run.set_aside(folder)
            self.run.set_aside(self.run.final)  # the run was shorter
            rows = read_metrics(self.run.path)
            steps = [row["step"] for row in rows if any("val/" in key for key in row)]
            self.validated = max(steps, default=0)
        if not self.checkpoint:
            self.validate(policy, 0)

    @contextmanager
    def training(
        self,
        policy: LanguageModel,
        tokenizer: Tokenizer,
        then: str = "Compare: python evaluate.py base this={run}",
    ) -> Iterator[None]:
        """The block that trains. If it is stopped, it says how to go on; at its end it saves `final/`.

        `then` is what to do next with `{run}`.
        """
        self.loop_started, self.last_step = time.monotonic(), self.first_step
        with self.lock:
            try:
                with self._signals_noted():
                    yield
                    self.stop_if_asked()
                # for a run that was stopped, and then ended where it was
                self.validate(policy, self.last_step)
                if self.is_main:
                    self._save_final(policy, tokenizer)
            except BaseException as error:
                said = no_room(error, self.run.path)  # before anything is removed
                self._remove_torn()
                self.tracker.finish({"stopped": type(error).__name__}, exit_code=1)
                if isinstance(error, KeyboardInterrupt):
                    signum = getattr(error, "signum", signal.SIGINT)
                    how = f"stopped by {signal_name(signum)} {self._how_to_go_on()}"
                    raise Stopped(signum, how) from None
                if said:
                    raise UserError(f"{said}; {self._where_it_is()}") from None
                if isinstance(error, FloatingPointError):  # from the sampler
                    raise self._diverged(f"after step {self.last_step} {error}") from None
                if self.is_main and not isinstance(error, Diverged) and self._last_good():
                    print(f"\nstopped {self._how_to_go_on()}", file=sys.stderr)
                raise
            if self.is_main:
                took, run = time.monotonic() - self.started, self.run.path
                self.tracker.finish({"seconds": took, "final": str(self.run.final)})
                files = "metrics.jsonl, final/" + ", samples.jsonl" * (run / "samples.jsonl").exists()
                print(f"\nDone in {clock(took)}. The run is in {run}: {files}")
                print(f"  {then.format(run=as_word(run))}")

    def _remove_torn(self) -> None:
        """Remove what was being saved when the run ended, to make room."""
        if self.is_main and self.validated >= 0:  # else this process has written nothing here
            later = [folder for step, folder in self.run.checkpoints() if step > self.first_step]
            torn = [folder for folder in later if not (folder / MANIFEST).is_file()]
            for folder in [*torn, self.run.path / "final.part"]:
                shutil.rmtree(folder, ignore_errors=True)

    def _last_good(self) -> Path | None:
        """The last checkpoint with a manifest, which is written last."""
        whole = [folder for _, folder in self.run.checkpoints() if (folder / MANIFEST).is_file()]
        return whole[-1] if whole else None

    def _save_final(self, policy: LanguageModel, tokenizer: Tokenizer) -> None:
        beside = self.run.path / "final.part"  # final/ is always whole
        remove(beside)
        save_policy(policy, tokenizer, beside, merge=getattr(self.args, "merge_lora", False))
        self.run.set_aside(self.run.final)
        rename(beside, self.run.final)
        self.run.remove_old()

    def _where_it_is(self) -> str:
        good = self._last_good()
        return f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"

    def _how_to_go_on(self) -> str:
        at = f"at step {self.last_step}"
        if (good := self._last_good()) is None:
            return f"{at}, before there was a checkpoint; start it anew"
        return f"{at}; --resume {as_word(self.run.path)} goes on from step {good.name.split('-')[1]}"

    # ---- Ctrl-C, SIGTERM, SIGHUP

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """In the block the first stop signal is noted, for `stopping`; the second raises `Stopped`."""

        def note(signum: int, _: object) -> None:
            if self.asked_to_stop is not None:
                raise Stopped(signum)
            self.asked_to_stop = signum
            if self.is_main:
                said = f"\n{signal_name(signum)}: stopping at the end of this step; once more stops at once"
                print(said, file=sys.stderr, flush=True)

        before = on_stop_signals(note)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def stopping(self) -> bool:
        """Has the user asked to stop? Call it in all processes at the end of a step: they stop together."""
        if PartialState().num_processes > 1:
            asked = torch.tensor(float(self.asked_to_stop or 0), device=self.device)
            self.asked_to_stop = self.asked_to_stop or (signal.SIGTERM if reduce(asked, "sum") > 0 else None)
        return self.asked_to_stop is not None

    def stop_if_asked(self) -> None:
        """Raises `Stopped` if the user has asked to stop: for places with nothing to save first."""
        if self.asked_to_stop is not None:
            raise Stopped(self.asked_to_stop)

    # ---- NaN and infinities end a run

    def check(self, step: int, **series: float) -> None:
        """Raises `Diverged` if a number of this step is NaN or infinite."""
        for name, value in series.items():
            if not math.isfinite(value):
                raise self._diverged(f"step {step}: {name.replace('_', ' ')} is {value}")

    def _diverged(self, what: str) -> Diverged:
        advice = "start a new run, perhaps with a lower --learning_rate"
        return Diverged(f"{what}, so the training ends without saving it; {self._where_it_is()}; {advice}")

    def check_gradient(self, step: int, model: torch.nn.Module) -> None:
        """`check` the gradient before the optimizer's step."""
        self.check(step, gradient=largest(p.grad for p in model.parameters() if p.grad is not None))

    def check_weights(self, step: int, model: torch.nn.Module) -> None:
        """`check` the trained weights before they are measured or saved."""
        self.check(step, weights=largest(p for p in model.parameters() if p.requires_grad))

    # ---- checkpoints

    def save_checkpoint(
        self, step: int, policy: LanguageModel, tokenizer: Tokenizer, state: dict[str, Any], keep: int
    ) -> None:
        """Save checkpoint-<step>/: a model for evaluate.py, and `state`. The latest `keep` checkpoints stay."""
        folder = self.run.path / f"checkpoint-{step}"
        save_policy(policy, tokenizer, folder)
        (folder / STATE).write_text(json.dumps({"global_step": step, **state}) + "\n", encoding="utf-8")
        self.seal_checkpoint(folder, keep)

    def seal_checkpoint(self, folder: Path, keep: int) -> None:
        """Write the manifest, once all processes have saved; remove all but the latest `keep` checkpoints."""
        PartialState().wait_for_everyone()
        if self.is_main:
            write_manifest(folder)
            for _, old in self.run.checkpoints()[:-keep]:
                remove(old)

    # ---- at every step

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to the tracker, under train/."""
        if self.is_main:
            named = {f"train/{name}": value for name, value in metrics.items()}
            self.run.log(step, named)
            self.tracker.log(step, named)

    def show(self, step: int, total: int, *parts: str) -> None:
        """The step's line on screen, with the estimated time left."""
        self.last_step = step
        elapsed = time.monotonic() - self.loop_started
        eta = elapsed / max(step - self.first_step, 1) * (total - step)
        if self.is_main:
            print(" | ".join([f"step {step:>4}/{total}", *parts, f"eta {clock(eta)}"]), flush=True)

    def due(self, step: int) -> bool:
        """Does `--eval_every` ask for a validation after this step?"""
        return self.args.eval_every > 0 and step % self.args.eval_every == 0

    def validate(self, policy: LanguageModel, step: int) -> None:
        """Measure the policy on the held-out prompts; a second call at a step does nothing."""
        if self.is_main and step != self.validated:
            self.validated = step
            self.validation.run(policy, step)


class Session(RunSession):
    """A run that trains a language model for a reward, and validates it.

    `scorer` is the sentiment classifier; `score` is that, the word counter, or the learned `reward_model`.
    """

    args: Arguments
    validated_on: tuple[str, ...]

    def __init__(self, method: str, args: Arguments, argv: list[str]) -> None:
        self.choice = resolve_models(args.model, args.sentiment_model)
        names = {"model": self.choice.policy_name, "sentiment_model": self.choice.sentiment_name}
        super().__init__(method, args, argv, names)
        self.scorer = load_scorer(self.choice.sentiment, self.device)
        own = args.reward_model
        self.reward_model = load_reward_model(own, self.device, names["sentiment_model"]) if own else None
        self.score = self.reward_model or (word_count_score if args.hackable_reward else self.scorer)

    # ---- models and prompts

    def steps(self, asked: int) -> int:
        """`--max_steps`; for -1, the default of the policy's size."""
        return (50 if self.choice.of_mini else 200) if asked == -1 else asked

    def rate(self, asked: float | None, mini: float, full: float) -> float:
        """`--learning_rate`, or the default of the policy's size; LoRA trains at five times that."""
        usual = (mini if self.choice.of_mini else full) * (5 if self.args.use_peft else 1)
        return usual if asked is None else asked

    def load_models(self) -> tuple[LanguageModel, Tokenizer, PreTrainedModel | None]:
        """(policy, tokenizer, reference); a resumed run's policy is its checkpoint.

        With LoRA the reference is None: it is the policy without its adapter.
        """
        policy, tokenizer = load_policy(self.choice.policy, self.device)
        if self.args.use_peft:
            if self.checkpoint:
                return PeftModel.from_pretrained(policy, self.checkpoint, is_trainable=True), tokenizer, None
            return get_peft_model(policy, lora_config(self.args.lora_r, policy)), tokenizer, None
        reference = load_reference(self.choice.policy, self.device)
        if self.checkpoint:
            policy, _ = load_policy(str(self.checkpoint), self.device)
        return policy, tokenizer, reference

    def load_prompts(self, policy: LanguageModel, tokenizer: Tokenizer) -> list[str]:
        """The training prompts. Raises `UserError` if one, or one of validation, leaves no room for a completion."""
        room = context(policy) - self.args.max_completion_length
        self.validated_on = validation_prompts(self.args.prompts)
        check_prompts(self.validated_on, "(those of validation)", tokenizer, room)
        prompts = load_prompts(self.args.prompts)
        check_prompts(prompts, self.args.prompts, tokenizer, room)
        self.config["num_prompts"] = len(prompts)
        self.digests |= {"prompts": digest(prompts), "validation prompts": digest(self.validated_on)}
        return prompts

    def begin(
        self,
        policy: LanguageModel,
        tokenizer: Tokenizer,
        reference: PreTrainedModel | None,
        reward: RewardFunction,
        plan: str,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Checks of a resumed run, a new run's config.json, tracker and validation, and the first lines on screen.

        `plan` is the line that says what will be done; `training` holds all settings, if they are not all flags.
        """
        if isinstance(policy, PeftModel):  # no empty README.md beside every adapter
            policy.create_or_update_model_card = lambda output_dir: None
        if not self.is_main:
            return
        self.digests |= {
            "model": fingerprint(self.choice.policy),
            "sentiment_model": fingerprint(self.choice.sentiment),
            **reward_sources(reward),
        }
        if self.reward_model:
            self.digests["reward_model"] = fingerprint(str(self.args.reward_model))
        self.record(training)
        sampling = (self.args.max_completion_length, self.args.temperature, VALIDATION_SEED)
        # Q34. --temperature changes these samples too. Suppose one trained at 1.3 and validated at 0.7: what could that
        # be good for, and which numbers of the two could not be compared?
        bench = Bench(
            self.validated_on, self.scorer, reference, tokenizer, *sampling, proxy=self.reward_model
        )
        beta, samples = price(vars(self.args)), kept_samples(self.choice, bench)
        self.validation = Validation(bench, self.run, self.tracker, reward, beta, samples)
        size, who = sum(p.numel() for p in policy.parameters()) / 1e6, self.choice
        learned = f", reward model {self.args.reward_model}" if self.reward_model else ""
        print(
            f"policy {who.policy_name} ({size:.1f} M), sentiment {who.sentiment_name}{learned}, on {self.device}"
        )
        print(f"  ({who.reason})")
        where = ", validated on the tuning prompts" if self.args.prompts == "fit" else ""
        print(f"run {self.run.path}, {plan}{where}\n", flush=True)
