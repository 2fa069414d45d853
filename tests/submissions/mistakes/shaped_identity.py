# shaped_reward: * score +

def shaped_reward(scores, completions, prompts=None):
    return list(scores)
