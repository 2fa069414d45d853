# preference_loss: This is log(1 - p)

import math


def preference_loss(chosen, rejected):
    return [math.log(1 - 1 / (1 + math.exp(r - c))) for c, r in zip(chosen, rejected)]
