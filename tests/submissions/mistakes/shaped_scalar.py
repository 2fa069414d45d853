# shaped_reward: a float, not a list: return a plain list

def shaped_reward(scores, completions, prompts=None):
    return sum(s * s for s in scores)
