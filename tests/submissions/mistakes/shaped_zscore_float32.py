# shaped_reward: * score -

import numpy as np


def shaped_reward(scores, completions, prompts=None):
    scores = np.asarray(scores, dtype=np.float32)
    if scores.size == 0:
        return []
    return ((scores - scores.mean()) / (scores.std() + 1e-4)).tolist()
