"""Training: a float phase, then a quantization-aware phase. Training can resume after any epoch."""

from edgecnn.train.train import train

__all__ = ["train"]
