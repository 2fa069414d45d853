"""Tries to lift the limits and to become root."""

import os
import resource

for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
    try:
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        pass
for become in (os.setuid, os.seteuid, os.setgid):
    try:
        become(0)
    except OSError:
        pass


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    raise RuntimeError(f"uid {os.getuid()} {resource.getrlimit(resource.RLIMIT_AS)}")


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    raise RuntimeError(f"uid {os.getuid()} {resource.getrlimit(resource.RLIMIT_AS)}")


def shaped_reward(scores, completions, prompts=None):
    raise RuntimeError(f"uid {os.getuid()} {resource.getrlimit(resource.RLIMIT_AS)}")
