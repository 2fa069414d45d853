# shaped_reward: All completions get the same reward

def shaped_reward(scores, completions, prompts=None):
    return [1.0 for _ in scores]
