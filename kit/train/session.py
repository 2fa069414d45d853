"""One training run, from its flags to its folder: what every trainer needs and no method is about.

Not a trainer and not a framework: sampling, the call of the reward and the update stand in the method's own file.
In the order of use:

    session = Session("ppo", args, PARSER.argv)      models chosen, seed set, scorer loaded
    policy, tokenizer, reference = session.load_models()   (or a method loads them its own way)
    prompts = session.load_prompts(policy, tokenizer)
    session.open_run("ppo-0.1")                            the run folder, made or resumed
    session.begin(policy, tokenizer, reference, ...)       tracker, first lines on screen
    with session.training(policy):                         stopped: says how to go on; finished: saves final/
        session.start(policy)                              all is loaded: logs cut to the checkpoint, config.json
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
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from data import check_prompts, load_prompts, validation_prompts
from kit.base.errors import Diverged, Stopped, UserError, no_room, on_stop_signals, signal_name
from kit.base.files import digest, read_text, remove, rename, sha256
from kit.base.flags import Arguments
from kit.base.metrics import REWARD_CONFIG, composite_reward, load_reward_weights
from kit.base.runs import MANIFEST, STATE, Run, read_config, refuse_change, write_manifest
from kit.base.screen import clock
from kit.lm.models import context, load_policy, load_reference, lora_config, resolve_models, save_policy
from kit.measure.frontier import price
from kit.measure.measuring import Bench
from kit.measure.reference import kept_samples
from kit.train.tracking import Tracker, open_tracker, refuse_uninstalled
from kit.train.validation import VALIDATION_SEED, Limit, Validation
from reward_utils import RewardFunction, Scorer, linear_reward, make_reward_function, sparse_reward
from sentiment import load_scorer, word_count_score

MODEL_FILES = ("*.safetensors", "*config.json", "tokenizer.json")


def reward_without_penalty(
    ours: Arguments, score: Scorer, tokenizer: PreTrainedTokenizerBase
) -> RewardFunction:
    """The kit's reward for a method that deals with the KL in its own way, or not at all.

    `shaped` is the composite R: there is no exercise to fill in here.
    """
    return make_reward_function(
        score,
        tokenizer,
        reward_shaping=ours.reward_shaping,
        negate=ours.negate_reward,
        student=SimpleNamespace(shaped_reward=composite_reward),
    )


def prediction(text: str | None, resumed: Run | None = None) -> dict[str, str] | None:
    """What config.json keeps of `--predict`: the text, and when it was given, in UTC (ISO 8601).

    A `resumed` run keeps what it has: whatever is said once it has begun is no prediction.
    """
    if resumed is not None:
        return read_config(resumed.path).get("prediction")
    if text is None or not text.strip():
        return None
    text = text.strip().encode("utf-8", "replace").decode()  # a terminal may hand on bytes that are no UTF-8
    return {"text": text, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def fingerprint(spec: str) -> str | None:
    """Tells the model at `spec` from another in the same place: a digest of its files, or its commit on the Hub."""
    path = Path(spec)
    if not path.exists():
        cached = try_to_load_from_cache(spec, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else None
    path = path / "final" if (path / "final").is_dir() else path
    found = {file for pattern in MODEL_FILES for file in path.glob(pattern)}
    return digest([sha256(file) for file in sorted(found)]) if path.is_dir() else sha256(path)


def reward_sources(reward: RewardFunction) -> dict[str, str]:
    """{file: digest} of what the user may edit and the reward is made of; comments do not count."""
    found = {}
    for function in (reward.shape, reward.penalty):
        if function is composite_reward:
            found[f"configs/{REWARD_CONFIG.name}"] = digest(load_reward_weights())
        elif function not in (None, linear_reward, sparse_reward):
            file = Path(inspect.unwrap(function).__code__.co_filename)
            found[file.name] = digest(ast.unparse(ast.parse(read_text(file, "the reward"))))
    return found


def largest(tensors: Iterable[torch.Tensor]) -> float:
    """The largest absolute value in all of them; NaN if there is one, 0 for none."""
    norm = torch.nn.utils.get_total_norm(list(tensors), norm_type=float("inf"))
    norm = getattr(norm, "full_tensor", lambda: norm)()  # of a sharded model
    return float(norm)


class Session:
    """Models, folder, logs and validation of one run. In a launch of several processes only the main one writes.

    `scorer` is the sentiment classifier, `score` what the reward counts: the classifier or the word counter.
    `digests` tell the inputs of the run from others in the same place: a resumed run must have the same.
    `checkpoint` is where a resumed run goes on, `state` what stands in its trainer_state.json, `first_step` the step
    it was saved after (else None, {} and 0).
    """

    run: Run
    lock: AbstractContextManager[Any]
    validated_on: tuple[str, ...]
    validation: Validation

    def __init__(self, method: str, ours: Arguments, argv: list[str]) -> None:
        self.started = time.monotonic()
        self.ours = ours
        # one process, unless launched by accelerate or torchrun; never Apple's MPS, which it would choose
        process = PartialState(cpu=not torch.cuda.is_available())
        self.device, self.is_main = process.device, process.is_main_process
        self.checkpoint: Path | None = None
        self.state: dict[str, Any] = {}
        if ours.resume:
            self.run = Run.open(ours.resume)
            self.lock = self.run.lock() if self.is_main else nullcontext()
            self.checkpoint, skipped = self.run.last_checkpoint()
            if skipped and self.is_main:
                print(f"{'; '.join(skipped)}: going on from {self.checkpoint.name}", file=sys.stderr)
            self.state = json.loads((self.checkpoint / STATE).read_text(encoding="utf-8"))
        self.first_step = int(self.state.get("global_step", 0))
        self.choice = resolve_models(ours.model, ours.sentiment_model)
        names = {"model": self.choice.policy_name, "sentiment_model": self.choice.sentiment_name}
        flags = {name: value for name, value in vars(ours).items() if name != "predict"}
        self.config: dict[str, Any] = {"method": method, "argv": argv, **flags, **names}
        self.config["processes"] = process.num_processes
        if ours.resume:  # `auto` may mean another model on another machine
            stored = read_config(ours.resume)
            for key in ("method", *names):
                if stored.get(key) != self.config[key]:
                    refuse_change(ours.resume, key, stored.get(key), self.config[key])
            if (were := stored.get("processes", 1)) != process.num_processes:
                raise UserError(
                    f"--resume {ours.resume}: this run was trained by {were} processes, not {process.num_processes}, "
                    f"and would go on with other numbers; launch {were}, or start a new run"
                )
        set_seed(ours.seed)
        self.scorer = load_scorer(self.choice.sentiment, self.device)
        self.score = word_count_score if ours.hackable_reward else self.scorer
        self.tracker: Tracker | None = None
        if ours.wandb and ours.report_to not in ("none", "wandb"):
            raise UserError(f"--wandb and --report_to {ours.report_to}: a run has one of them; keep one")
        self.report_to = "wandb" if ours.wandb else ours.report_to
        refuse_uninstalled(self.report_to)
        self.digests: dict[str, str | None] = {}
        self.validated = -1  # the last step that was
        self.asked_to_stop: int | None = None  # the signal that asked

    # ---- models and prompts

    def steps(self, asked: int) -> int:
        """`--max_steps`, or for -1 what suits the policy."""
        return (50 if self.choice.of_mini else 200) if asked == -1 else asked

    def refuse_finished(self, done: int, total: int, flag: str) -> None:
        """Raises `UserError` if a resumed run has nothing left to do; `flag` says how far it is to go."""
        if self.checkpoint and (done > total or (done == total and self.run.final.is_dir())):
            raise UserError(
                f"--resume {self.run.path}: this run is finished, {done} of {total} {flag.removeprefix('max_')} done; "
                f"to go on, give --{flag} more than {done}"
            )

    def rate(self, asked: float | None, mini: float, full: float) -> float:
        """`--learning_rate`, or what suits the policy: adapters start from nothing and take five times as much."""
        if asked is not None:
            return asked
        return (mini if self.choice.of_mini else full) * (5 if self.ours.use_peft else 1)

    def load_models(
        self,
    ) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, PreTrainedModel | None]:
        """(policy, tokenizer, reference), the policy from the checkpoint of a resumed run.

        With LoRA the reference is None: it is the policy less its adapter.
        """
        policy, tokenizer = load_policy(self.choice.policy, self.device)
        if self.ours.use_peft:
            if self.checkpoint:
                return PeftModel.from_pretrained(policy, self.checkpoint, is_trainable=True), tokenizer, None
            return get_peft_model(policy, lora_config(self.ours.lora_r, policy)), tokenizer, None
        reference = load_reference(self.choice.policy, self.device)
        if self.checkpoint:
            policy, _ = load_policy(str(self.checkpoint), self.device)
        return policy, tokenizer, reference

    def load_prompts(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The training prompts; they and those of validation must leave room for a completion (`UserError`)."""
        room = context(policy) - self.ours.max_completion_length
        self.validated_on = validation_prompts(self.ours.prompts)
        check_prompts(self.validated_on, "(those of validation)", tokenizer, room)
        prompts = load_prompts(self.ours.prompts, tokenizer, room)
        self.config["num_prompts"] = len(prompts)
        self.digests |= {"prompts": digest(prompts), "validation prompts": digest(self.validated_on)}
        return prompts

    def _refuse_changed_inputs(self) -> None:
        """A resumed run is the same experiment. Raises `UserError`, which names what has changed since it began."""
        stored = read_config(self.run.path).get("digests", {})  # none in a run of an earlier version
        changed = [name for name, value in self.digests.items() if stored.get(name, value) != value]
        if changed:
            names = " and ".join(f"{name} {self.config.get(name, '')}".strip() for name in changed)
            raise UserError(
                f"--resume {self.run.path}: changed since this run began: {names}; that would be another experiment; "
                "bring back what was there, or start a new run"
            )

    # ---- the run folder

    def open_run(self, name: str) -> Run:
        """The run's folder: the one to resume, or a new one called `name`; the same in every process."""
        if not self.ours.resume:
            paths = [str(Run.create(self.ours.output_dir, name).path) if self.is_main else None]
            self.run = Run(Path(broadcast_object_list(paths)[0]))
            if self.is_main:
                atexit.register(self.run.remove_if_unused)
            self.lock = self.run.lock() if self.is_main else nullcontext()
        return self.run

    def begin(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel | None,
        reward: RewardFunction,
        plan: str,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Tracker and validation, a new run's config.json, and the first lines on screen.

        `plan` says in one line what will be done. `training` are resolved settings, if those are not all flags.
        """
        if isinstance(policy, PeftModel):
            # PEFT's README.md beside every adapter is a form that nobody filled in
            policy.create_or_update_model_card = lambda output_dir: None
        if not self.is_main:
            return
        self.digests |= {
            "model": fingerprint(self.choice.policy),
            "sentiment_model": fingerprint(self.choice.sentiment),
            **reward_sources(reward),
        }
        if self.checkpoint:
            self._refuse_changed_inputs()
        flags = vars(self.ours)
        resolved = {name: value for name, value in (training or flags).items() if name != "predict"}
        self.config |= {"training": resolved, "digests": self.digests}
        if predicted := prediction(self.ours.predict, self.run if self.checkpoint else None):
            self.config["prediction"] = predicted
        if not self.checkpoint:
            self.run.write_config(self.config)
        tags = [self.config["method"], *filter(None, [flags.get("kl_type")])]
        self.tracker = open_tracker(
            self.report_to, self.ours.wandb_project, self.run.path, self.config, tags, self.first_step
        )
        bench = Bench(
            prompts=self.validated_on,
            scorer=self.scorer,
            reference=reference,
            tokenizer=tokenizer,
            max_new_tokens=self.ours.max_completion_length,
            temperature=self.ours.temperature,
            seed=VALIDATION_SEED,
        )
        counted = self.score if self.ours.hackable_reward else None
        samples = kept_samples(self.choice, bench)
        limit = Limit.of(reward, samples, self.validated_on, price(flags)) if samples else None
        self.validation = Validation(bench, self.run, self.tracker, counted, limit)
        print(self.choice.introduction(policy, self.device))
        where = ", validated on the tuning prompts" if self.ours.prompts == "fit" else ""
        print(f"run {self.run.path}, {plan}{where}\n", flush=True)

    def start(self, policy: PreTrainedModel | PeftModel) -> None:
        """Validation of step 0. Of a resumed run, once its checkpoint has loaded: forget what came after that."""
        if self.checkpoint and self.is_main:
            self.run.truncate_after(self.first_step)
            self.run.write_config(self.config)
            for step, folder in self.run.checkpoints():
                if step > self.first_step:  # not whole; it will be written again
                    self.run.set_aside(folder)
            self.run.set_aside(self.run.final)  # of a run that was shorter
            self.validated = self.first_step  # measured before its checkpoint was saved
        self.validate(policy, self.first_step)

    @contextmanager
    def training(
        self, policy: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str = "this"
    ) -> Iterator[None]:
        """The block that trains. Stopped by anything, it says how to go on; at its end `final/` is saved.

        `name` is what the run is called in the command that compares it.
        """
        self.loop_started, self.last_step = time.monotonic(), self.first_step
        with self.lock:
            try:
                with self._signals_noted():
                    yield
                    self.stop_if_asked()
                if self.is_main:
                    self._save_final(policy, tokenizer)
            except BaseException as error:
                said = no_room(error, self.run.path)  # asked before anything is removed
                self._remove_torn()
                if self.tracker is not None:
                    self.tracker.finish({"stopped": type(error).__name__}, exit_code=1)
                if isinstance(error, KeyboardInterrupt):
                    signum = getattr(error, "signum", signal.SIGINT)
                    raise Stopped(
                        signum, f"stopped by {signal_name(signum)} {self._how_to_go_on()}"
                    ) from None
                if said:
                    raise UserError(f"{said}; {self._where_it_is()}") from None
                if isinstance(error, FloatingPointError):  # from the sampler
                    raise self._diverged(f"after step {self.last_step} {error}") from None
                if self.is_main and not isinstance(error, Diverged) and self._last_good():
                    print(f"\nstopped {self._how_to_go_on()}", file=sys.stderr)
                raise
            if not self.is_main:
                return
            seconds = time.monotonic() - self.started
            if self.tracker is not None:
                self.tracker.finish({"seconds": seconds, "final": str(self.run.final)})
            print(self.run.closing(seconds, name))

    def _remove_torn(self) -> None:
        """What was being saved when the run ended; without it there is room for the next."""
        if self.is_main and self.validated >= 0:  # else nothing here is this process's
            later = [folder for step, folder in self.run.checkpoints() if step > self.first_step]
            torn = [folder for folder in later if not (folder / MANIFEST).is_file()]
            for folder in [*torn, self.run.path / "final.part"]:
                shutil.rmtree(folder, ignore_errors=True)

    def _last_good(self) -> Path | None:
        """The last whole checkpoint, by its manifest alone: this process wrote it, or has read it."""
        whole = [folder for _, folder in self.run.checkpoints() if (folder / MANIFEST).is_file()]
        return whole[-1] if whole else None

    def _save_final(self, policy: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        beside = self.run.path / "final.part"  # so that a final/ that is there is whole
        remove(beside)
        save_policy(policy, tokenizer, beside, merge=self.ours.merge_lora)
        self.run.set_aside(self.run.final)
        rename(beside, self.run.final)
        self.run.remove_old()

    def _where_it_is(self) -> str:
        good = self._last_good()
        return f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"

    def _how_to_go_on(self) -> str:
        if (good := self._last_good()) is None:
            return f"at step {self.last_step}, before there was a checkpoint; start it anew"
        return (
            f"at step {self.last_step}; --resume {self.run.path} goes on from step {good.name.split('-')[1]}"
        )

    # ---- Ctrl-C, SIGTERM, SIGHUP

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """In the block the first stop signal is noted, for `stopping`; the second raises `Stopped`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, _: object) -> None:
            if self.asked_to_stop is not None:
                raise Stopped(signum)
            self.asked_to_stop = signum
            if self.is_main:
                print(
                    f"\n{signal_name(signum)}: stopping at the end of this step; once more stops at once",
                    file=sys.stderr,
                    flush=True,
                )

        before = on_stop_signals(note)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def stopping(self) -> bool:
        """Has the user asked to stop? At the end of a step, in all processes: they stop at the same one."""
        if PartialState().num_processes > 1:
            asked = torch.tensor(float(self.asked_to_stop or 0), device=self.device)
            self.asked_to_stop = self.asked_to_stop or (signal.SIGTERM if reduce(asked, "sum") > 0 else None)
        return self.asked_to_stop is not None

    def stop_if_asked(self) -> None:
        """Where there is nothing to save first. Raises `Stopped`."""
        if self.asked_to_stop is not None:
            raise Stopped(self.asked_to_stop)

    # ---- nothing that is not finite

    def check(self, step: int, **series: float) -> None:
        """Raises `Diverged`, which ends the run, for the first number of `step` that is NaN or infinite."""
        for name, value in series.items():
            if not math.isfinite(value):
                raise self._diverged(f"step {step}: {name.replace('_', ' ')} is {value}")

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"{what}, so the training ends and saves nothing of it; {self._where_it_is()}; start a new run, with a "
            "lower --learning_rate if that is where it comes from"
        )

    def check_gradient(self, step: int, model: torch.nn.Module) -> None:
        """`check` of the gradient, before the optimizer takes it into the weights."""
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        self.check(step, gradient=largest(grads))

    def check_weights(self, step: int, model: torch.nn.Module) -> None:
        """`check` of the trained weights: what is measured or saved after this is finite."""
        self.check(step, weights=largest(p for p in model.parameters() if p.requires_grad))

    # ---- checkpoints

    def save_checkpoint(
        self,
        step: int,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        state: dict[str, Any],
        keep: int,
        more: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """checkpoint-<step>/: a model for evaluate.py like any other, `state`, and what `more` writes.

        Of all checkpoints the `keep` latest stay.
        """
        folder = self.run.path / f"checkpoint-{step}"
        save_policy(policy, tokenizer, folder)
        more(folder)
        (folder / STATE).write_text(json.dumps({"global_step": step, **state}) + "\n", encoding="utf-8")
        self.seal_checkpoint(folder, keep)

    def seal_checkpoint(self, folder: Path, keep: int | None) -> None:
        """What every process has written of it makes a whole checkpoint; of all, the `keep` latest stay (or all)."""
        PartialState().wait_for_everyone()
        if self.is_main:
            write_manifest(folder)
            for _, old in self.run.checkpoints()[:-keep] if keep else []:
                remove(old)

    # ---- at every step

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to the tracker, under train/."""
        if not self.is_main:
            return
        named = {f"train/{name}": value for name, value in metrics.items()}
        self.run.log(step, named)
        if self.tracker is not None:
            self.tracker.log(step, named)

    def show(self, step: int, total: int, *parts: str) -> None:
        """The step's line on screen, with the time that is left."""
        self.last_step = step
        elapsed = time.monotonic() - self.loop_started
        eta = elapsed / max(step - self.first_step, 1) * (total - step)
        if self.is_main:
            print(" | ".join([f"step {step:>4}/{total}", *parts, f"eta {clock(eta)}"]), flush=True)

    def due(self, step: int) -> bool:
        """Does `--eval_every` ask for a validation after this step?"""
        return self.ours.eval_every > 0 and step % self.ours.eval_every == 0

    def validate(self, policy: PreTrainedModel | PeftModel, step: int) -> None:
        """Measure the policy on the held-out prompts, once at each step."""
        if self.is_main and step != self.validated:
            self.validated = step
            self.validation.run(policy, step)
