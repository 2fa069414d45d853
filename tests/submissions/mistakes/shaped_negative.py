# shaped_reward: wrong way round

def shaped_reward(scores, completions, prompts=None):
    return [-s for s in scores]
