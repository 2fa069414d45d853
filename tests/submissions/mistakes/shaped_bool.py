# shaped_reward: a bool, not a plain number

def shaped_reward(scores, completions, prompts=None):
    return [s >= 0.8 for s in scores]
