# shaped_reward: Still pays: three words
def shaped_reward(scores, completions, prompts=None):
    return [s * len(set(text.split())) / max(len(text.split()), 1) for s, text in zip(scores, completions)]
