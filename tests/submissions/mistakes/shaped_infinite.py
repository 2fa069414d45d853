# shaped_reward: finite

import math


def shaped_reward(scores, completions, prompts=None):
    return [math.log(s) if s > 0 else -math.inf for s in scores]
