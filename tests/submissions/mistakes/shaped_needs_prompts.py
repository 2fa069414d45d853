# shaped_reward: TypeError

def shaped_reward(scores, completions, prompts=None):
    return [s * s - 0.1 * (q in c) for s, c, q in zip(scores, completions, prompts)]
