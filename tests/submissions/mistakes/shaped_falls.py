# shaped_reward: falls as the score rises

def shaped_reward(scores, completions, prompts=None):
    return [(1 - s) ** 2 for s in scores]
