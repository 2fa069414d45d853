# shaped_reward: Still pays: one word forty times
def shaped_reward(scores, completions, prompts=None):
    return [s * s for s in scores]
