# shaped_reward: ZeroDivisionError

def shaped_reward(scores, completions, prompts=None):
    return [s * len(set(c.split())) / len(c.split()) for s, c in zip(scores, completions)]
