"""What training reports about a user's own images, from their listing alone."""

from collections import Counter

from edgecnn.data import Dataset
from edgecnn.inspect.findings import FEW_TRAINING
from edgecnn.labels import plural


def worst(dataset: Dataset) -> str:
    """Return a line on the copies and the small classes among a user's own images; "" if it has nothing to say."""
    if not dataset.own:
        return ""
    hashes = Counter(item.hash for items in dataset.items.values() for item in items)
    copies = sum(hashes.values()) - len(hashes)
    training = Counter(item.label for item in dataset.items["train"])
    few = [label for index, label in enumerate(dataset.labels) if training[index] < FEW_TRAINING]
    parts = []
    if copies:
        parts.append(f"{plural(copies, 'file is a copy', 'files are copies')} of another one")
    if few:
        parts.append(
            f"{plural(len(few), 'class has', 'classes have')} fewer than {FEW_TRAINING} training images, such as {few[0]}"
        )
    return f"{dataset.name}: {'; '.join(parts)}. To find more problems: edgecnn inspect" if parts else ""
