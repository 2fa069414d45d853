# shaped_reward: Still pays: a phrase over and over
def shaped_reward(scores, completions, prompts=None):
    rewards = []
    for s, text in zip(scores, completions):
        words = text.split()
        twice = sum(a == b for a, b in zip(words, words[1:]))
        rewards.append(s - 0.1 * twice - 0.5 * (len(words) < 6))
    return rewards
