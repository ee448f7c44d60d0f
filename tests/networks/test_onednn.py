import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.networks.keras import tf

ROOT = Path(__file__).resolve().parents[2]

TRAININGS = """
from edgecnn.recipe import build_recipe
from edgecnn.train.train import dry_run

for images, batch_size, precision in ((21, 128, "float32"), (127, 33, "bfloat16")):
    train = {"epochs": 1, "learning_rate": 0.003, "schedule": "one-cycle", "label_smoothing": 0.05}
    train |= {"batch_size": batch_size, "precision": precision}
    recipe = build_recipe({"network": {"name": "resnet_25kb"}, "train": train, "qat": {"epochs": 1, "batch_size": batch_size}})
    dry_run(recipe, (32, 32, 3), ("a", "b"), images, steps=2)
"""

STRIDED = ((32, 12, (2, 2)), (31, 12, (2, 2)), (16, 1, (2, 2)), (24, 12, (2, 1)))
"""Input side, input channels (fewer than a block of oneDNN's) and strides."""


def gradients(pixels, kernel, upstream, stride, padding):
    with tf.GradientTape() as tape:
        tape.watch((pixels, kernel))
        total = tf.reduce_sum(tf.nn.conv2d(pixels, kernel, stride, padding) * upstream)
    return tape.gradient(total, (pixels, kernel))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_gradients_of_strided_1x1_convolutions_are_right_and_avoid_the_kernel_that_overruns(padding):
    """TensorFlow 2.21.0's oneDNN writes out of bounds in the gradient of a strided 1x1 convolution with few channels."""
    random = np.random.default_rng(0)
    for side, inputs, (down, right) in STRIDED:
        x = random.standard_normal((3, side, side, inputs)).astype(np.float32)
        picked = x[:, ::down, ::right]
        kernel = random.standard_normal((1, 1, inputs, 16)).astype(np.float32)
        upstream = random.standard_normal((*picked.shape[:3], 16)).astype(np.float32)
        tensors = [tf.constant(array) for array in (x, kernel, upstream)]

        def eager(*tensors, stride=(down, right)):
            return gradients(*tensors, stride, padding)

        compiled = tf.function(eager)
        operations = compiled.get_concrete_function(*tensors).graph.get_operations()
        strides = [list(item.get_attr("strides")) for item in operations if item.type == "Conv2DBackpropFilter"]
        assert strides == [[1, 1, 1, 1]]
        expected = np.zeros_like(x)
        expected[:, ::down, ::right] = upstream @ kernel[0, 0].T
        for run in (compiled, eager):
            of_pixels, of_kernel = run(*tensors)
            np.testing.assert_allclose(of_pixels, expected, atol=1e-4)
            np.testing.assert_allclose(
                of_kernel[0, 0], np.einsum("nhwi,nhwo->io", picked, upstream), atol=1e-3, rtol=1e-4
            )


@pytest.mark.slow
def test_training_on_odd_batches_does_not_crash_the_process():
    """With one thread it would not: two threads share an odd batch unevenly."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", TRAININGS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
