"""One padded float32 array for the whole batch, masked."""

import numpy as np


def _pad(rows):
    width = max((len(row) for row in rows), default=0)
    padded = np.zeros((len(rows), width), dtype=np.float32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return (np.float32(kl_coef) * (_pad(log_probs_policy) - _pad(log_probs_ref)).sum(axis=1)).tolist()


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    log_w = np.clip(_pad(log_probs_ref) - _pad(log_probs_policy), None, np.float32(10.0))
    return (np.float32(kl_coef) * -np.expm1(log_w).sum(axis=1)).tolist()


def shaped_reward(scores, completions, prompts=None):
    scores = np.asarray(scores, dtype=np.float32)
    distinct = np.array([len(set(text.split())) for text in completions], dtype=np.float32)
    return (np.where(scores > 0.8, 1.0, scores / 2) * distinct / (distinct + 5)).astype(np.float32).tolist()
