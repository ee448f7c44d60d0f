"""Stress: how well does a model do where cameras do harm? Images are corrupted as cameras do, at five strengths, and answered again."""
