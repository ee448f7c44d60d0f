"""Training: a float phase, then a quantization-aware phase; every epoch can be resumed."""

from edgecnn.train.train import train

__all__ = ["train"]
