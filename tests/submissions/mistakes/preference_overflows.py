# preference_loss: With scores 800 apart, or of 1,000: OverflowError

import math


def preference_loss(chosen, rejected):
    return [math.log(1 + math.exp(r - c)) for c, r in zip(chosen, rejected)]
