# shaped_reward: its place in the batch

import random


def shaped_reward(scores, completions, prompts=None):
    rng = random.Random(0)
    return [s + rng.random() for s in scores]
