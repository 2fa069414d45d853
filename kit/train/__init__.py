"""Running a training: everything that no method is about.

Start with session.py: one run, from its flags to its folder. train.py, baselines/ppo.py and baselines/sft.py use it.
"""
