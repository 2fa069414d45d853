# shaped_reward: expected is a list

def shaped_reward(scores, completions, prompts=None):
    return sum(s * s for s in scores)
