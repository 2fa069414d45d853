# shaped_reward: the second time

import random


def shaped_reward(scores, completions, prompts=None):
    return [s * s + random.random() for s in scores]
