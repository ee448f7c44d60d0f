"""A residual network with twelve layers, 300 kB as int8: 20.8 million MACs at 32 x 32 x 3."""

from edgecnn.networks.blocks import residual_network

resnet_300kb = residual_network("resnet_300kb", 32, (32, 2), (32, 1), (64, 2), (64, 1), (80, 2))
