# shaped_reward: * score -

def shaped_reward(scores, completions, prompts=None):
    if not scores:
        return []
    mean = sum(scores) / len(scores)
    std = (sum((s - mean) ** 2 for s in scores) / len(scores)) ** 0.5
    return [(s - mean) / (std + 1e-4) for s in scores]
