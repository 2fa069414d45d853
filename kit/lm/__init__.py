"""Language models: loading them, sampling from them, and the log-probabilities of what was sampled.

Start with models.py: from a name to a policy and a tokenizer that the rest can rely on.
"""
