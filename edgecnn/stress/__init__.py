"""Stress: how well does a model withstand what cameras do to images? Images are corrupted at five strengths and classified again."""
