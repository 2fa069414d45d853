# shaped_reward: the second time

import random


def shaped_reward(scores, completions, prompts=None):
    return [random.random() for _ in scores]
