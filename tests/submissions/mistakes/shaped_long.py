# shaped_reward: Still pays: one word forty times
def shaped_reward(scores, completions, prompts=None):
    return [s * min(len(text.split()), 20) for s, text in zip(scores, completions)]
