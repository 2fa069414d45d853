# shaped_reward: * score -

def shaped_reward(scores, completions, prompts=None):
    return [2 * s - 1 for s in scores]
