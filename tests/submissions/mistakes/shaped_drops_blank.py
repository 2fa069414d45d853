# shaped_reward: one float for each

def shaped_reward(scores, completions, prompts=None):
    return [s * s for s, c in zip(scores, completions) if c.strip()]
