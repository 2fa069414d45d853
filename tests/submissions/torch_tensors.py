"""Right, but for the import: what grades it need not have torch."""

import torch


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [
        (kl_coef * (torch.tensor(p) - torch.tensor(r)).sum()).item()
        for p, r in zip(log_probs_policy, log_probs_ref)
    ]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    out = []
    for p, r in zip(log_probs_policy, log_probs_ref):
        w = torch.exp((torch.tensor(r) - torch.tensor(p)).clamp(max=15.0))
        out.append((kl_coef * (1 - w).sum()).item())
    return out


def shaped_reward(scores, completions, prompts=None):
    s = torch.tensor(scores, dtype=torch.float32)
    distinct = torch.tensor([float(len(set(text.split()))) for text in completions])
    return (torch.sigmoid(8 * (s - 0.5)) * distinct.clamp(max=12) / 12).tolist()
