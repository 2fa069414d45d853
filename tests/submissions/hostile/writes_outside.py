"""Writes into a folder outside its own."""

import os

for path in ("@CANARY@/written", "../hostile-written", "/var/tmp/hostile-written", "/etc/hostile-written"):
    try:
        with open(path, "w") as file:
            file.write("I was here")
    except OSError:
        pass


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def shaped_reward(scores, completions, prompts=None):
    return [1.0 for _ in scores]
