# preference_loss: the sign is wrong

import math


def preference_loss(chosen, rejected):
    return [-max(r - c, 0.0) - math.log1p(math.exp(-abs(r - c))) for c, r in zip(chosen, rejected)]
