"""A residual network with ten wide layers, 1,000 kB as int8: 55 million MACs at 32 x 32 x 3."""

from edgecnn.networks.blocks import residual_network

# wide layers at 16 x 16 and 8 x 8, which processors multiply most efficiently, do most of its work
resnet_1000kb = residual_network("resnet_1000kb", 32, (64, 2), (128, 2), (128, 1), (144, 2))
