import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GRADIENTS = """
import numpy as np

from edgecnn.networks.keras import tf

random = np.random.default_rng(0)
for batch in (1, 3, 37, 63, 127):
    for side, inputs, stride in ((32, 12, 2), (31, 12, 2), (16, 1, 2), (24, 12, (2, 1)), (16, 16, 2), (16, 12, 1)):
        x = random.standard_normal((batch, side, side, inputs)).astype(np.float32)
        down, right = stride if isinstance(stride, tuple) else (stride, stride)
        picked = x[:, ::down, ::right]
        kernel = tf.Variable(random.standard_normal((1, 1, inputs, 16)).astype(np.float32))
        upstream = random.standard_normal((*picked.shape[:3], 16)).astype(np.float32)
        for padding in ("SAME", "VALID"):
            pixels = tf.constant(x)
            with tf.GradientTape() as tape:
                tape.watch(pixels)
                total = tf.reduce_sum(tf.nn.conv2d(pixels, kernel, stride, padding) * upstream)
            of_pixels, of_kernel = tape.gradient(total, (pixels, kernel))
            expected = np.zeros_like(x)
            expected[:, ::down, ::right] = upstream @ kernel.numpy()[0, 0].T
            np.testing.assert_allclose(of_pixels.numpy(), expected, atol=1e-4)
            np.testing.assert_allclose(
                of_kernel.numpy()[0, 0], np.einsum("nhwi,nhwo->io", picked, upstream), atol=1e-3, rtol=1e-4
            )
"""

TRAININGS = """
from edgecnn.recipe import build_recipe
from edgecnn.train.dry_run import dry_run

for images, batch_size, precision in ((21, 128, "float32"), (127, 33, "bfloat16")):
    train = {"epochs": 1, "learning_rate": 0.003, "schedule": "one-cycle", "label_smoothing": 0.05}
    train |= {"batch_size": batch_size, "precision": precision}
    recipe = build_recipe({"network": {"name": "resnet_25kb"}, "train": train, "qat": {"epochs": 1, "batch_size": batch_size}})
    dry_run(recipe, (32, 32, 3), ("a", "b"), images, steps=2)
"""


@pytest.mark.parametrize(
    "script", [GRADIENTS, pytest.param(TRAININGS, marks=pytest.mark.slow)], ids=["gradients", "trainings"]
)
def test_odd_batches_do_not_crash_the_process(script):
    """TensorFlow 2.21.0's oneDNN writes out of bounds in the gradient of a strided 1x1 convolution with few channels."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
