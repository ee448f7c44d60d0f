"""A residual network with six layers, 28 kB as int8: 16,950 parameters and 2.2 million MACs at 32 x 32 x 3 for ten classes."""

from edgecnn.networks.blocks import residual_network

resnet_25kb = residual_network("resnet_25kb", 12, (16, 2), (28, 2))
