"""Measuring models and showing what was measured.

Start with measuring.py: completions -> rows -> estimates, the one way for validation and evaluation.
"""
