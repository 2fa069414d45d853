# shaped_reward: a str, not a plain number

def shaped_reward(scores, completions, prompts=None):
    return [f"{s * s:.3f}" for s in scores]
