# shaped_reward: Still pays: one word forty times
def shaped_reward(scores, completions, prompts=None):
    return [1.0 if s >= 0.8 else 0.0 for s in scores]
