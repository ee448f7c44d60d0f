"""The block at the top of a model card that the Hugging Face Hub reads: YAML, whose values are written as JSON."""

import json

from edgecnn.verify.parity_report import Report

TASK = "image-classification"


def metadata_block(name: str, report: Report) -> str:
    """Return a card's metadata: library, task, tags, and the accuracy of each model on the test split.

    Source: the Hub's model card specification; `huggingface_hub.ModelCardData` reads it.
    """
    formats = sorted({model.format for model in report.models if model.format in ("tflite", "onnx")})
    task = {"type": TASK, "name": "Image classification"}
    dataset = {"type": report.data.name, "name": report.data.title, "split": "test"}
    metrics = (
        {"type": "accuracy", "value": model.accuracy, "name": f"accuracy, {model.name}"} for model in report.models
    )
    results = [{"task": task, "dataset": dataset, "metrics": [metric]} for metric in metrics]
    aware = report.int8.method == "qat" if report.int8 else any(one.kind == "conversion" for one in report.comparisons)
    fields = {
        "library_name": "edgecnn",
        "pipeline_tag": TASK,
        "tags": [TASK, *formats, "int8", *(["quantization-aware-training"] if aware else []), "edge", "raspberry-pi"],
        "model-index": [{"name": name, "results": results}],
    }
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
    # some renderers treat the block as Markdown, and its content as HTML
    return f"---\n{lines}\n---\n".replace("<", r"\u003c").replace("&", r"\u0026")
