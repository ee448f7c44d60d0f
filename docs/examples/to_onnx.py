import torch

model = torch.load("model.pt", weights_only=False)  # executes code in the file
model.eval()
torch.onnx.export(
    model,
    (torch.zeros(1, 3, 224, 224),),
    "model.onnx",
    input_names=["pixels"],
    output_names=["logits"],
    dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
    dynamo=False,
)
