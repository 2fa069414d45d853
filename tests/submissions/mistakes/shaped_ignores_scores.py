# shaped_reward: scores do not matter

def shaped_reward(scores, completions, prompts=None):
    return [len(c) / 100 for c in completions]
