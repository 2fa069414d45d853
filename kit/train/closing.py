"""The end of a training run on screen: what its numbers say, and what to try next."""

from kit.base.flags import Arguments
from kit.measure.verdict import HACKED, LENGTH, signals, verdict
from kit.train.validation import NAMES

FAR = 1.0  # nats: a KL above it should come with a higher score


def what_next(args: Arguments, penalty: str, first: dict[str, float], last: dict[str, float]) -> str:
    """At most three lines on the run, from its `first` and `last` validation.

    `penalty`: the flags of the run's KL term, its strength last (`--kl_type forward --kl_coef 0.05`); empty for none.
    """
    model, base = ({key: m[name] for name, key in NAMES.items()} for m in (last, first))
    found = signals(model, base)
    unusual = [s for s in found if s.level != "ok" and not s.name.startswith("KL")]  # the KL is told anyway
    odd = ", ".join(f"{s.name} {s.value:.2f} {s.unit}" for s in unusual)
    own = "val/proxy" if args.reward_model else "val/score_mean" if args.hackable_reward else None
    score = own or "val/sentiment_mean"
    gain = (last[score] - first[score]) * (-1 if args.negate_reward else 1)
    kl, length = last["val/kl_policy_ref"], last["val/length_mean"] / first["val/length_mean"]
    if kl > FAR and gain <= 0:
        return (
            f"The KL has grown to {kl:.1f} nats, and the score has not ({gain:+.2f}): the update goes the wrong way.\n"
            "  Is the sign of the penalty right?  python rewards.py;  if so, a smaller --learning_rate"
        )
    if verdict(found) == HACKED and not penalty:
        hacked = f"Hacked, {kl:.0f} nats away ({odd}): is that what you meant by positive?\n"
        if args.reward_model:
            return f"{hacked}  In the val lines, where does `gold` turn while `learned` still rises?"
        return (
            f"{hacked}  You write the cure: fill rewards.py, check it with  python rewards.py\n"
            "  then train with             python train.py --kl_type forward"
        )
    if verdict(found) == HACKED:
        return f"Hacked in spite of the penalty ({odd}), {kl:.0f} nats away:\n  try a larger {penalty.split()[-2]}."
    if length < LENGTH[0]:
        flags = f" {penalty}" if penalty else ""
        return f"The length fell to {length:.0%} of the base's: a short completion pays little KL.\n  " + (
            "Your shaped reward still pays for it:  python rewards.py shaped_reward"
            if args.reward_shaping == "shaped"
            else f"Next: python train.py{flags} --reward_shaping shaped"
        )
    share = f", captured {last['val/captured']:.2f}" if "val/captured" in last else ""
    look = f"Look at this: {odd}. " if odd else ""
    return (
        f"The score moved by {gain:+.2f} for {kl:.1f} nats{share}; the length limit cuts off "
        f"{last['val/truncated_ratio']:.0%} of the texts.\n  {look}Change one flag at a time, and compare."
    )
