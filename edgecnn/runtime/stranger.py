"""Out-of-distribution detection: does an image show any of the classes? It uses the model's features and best score, and only numpy.

Features are the input of the model's last layer. An image resembles the known ones if its features point in the same direction as those of
some training images, and if the model is confident. Both count equally, each as a p-value among the validation images.

Sources: nearest neighbours by cosine, Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv:2204.06507);
combining two p-values, Fisher 1925, "Statistical Methods for Research Workers", section 21.1.
"""

import numpy as np

from edgecnn.bundle.manifest import StrangerLimit


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Return features scaled to length 1, float32 (n, length); a row of zeros stays zero."""
    features = features.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features))[:, np.newaxis]
    return features / np.where(lengths > 0, lengths, 1)


def similarity(features: np.ndarray, known: np.ndarray, neighbours: int) -> np.ndarray:
    """Return each image's mean cosine similarity to the `neighbours` most similar of the known rows (`unit_rows`), float32 (n,)."""
    similar = unit_rows(features) @ known.T
    similar.partition(similar.shape[1] - neighbours, axis=1)
    nearest: np.ndarray = similar[:, similar.shape[1] - neighbours :].mean(axis=1)
    return nearest


def p_values(values: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Return the fraction of validation images, given in ascending order, that do not exceed each value: float64 (n,) in (0, 1]."""
    shares: np.ndarray = (1 + np.searchsorted(validation, values, side="right")) / (len(validation) + 1)
    return shares


class Strangers:
    """Detects images that show none of the classes."""

    def __init__(self, limit: StrangerLimit, known: np.ndarray) -> None:
        """Prepare to compare with the features of known images: int8 (images, length), each row with its own scale."""
        self.limit = limit
        self._known = unit_rows(known)
        self._scores, self._similarities = np.array(limit.scores), np.array(limit.similarities)
        self._least = self._similarities[0]
        self._spread = max(float(np.median(self._similarities) - self._least), 1e-6)

    def familiarity(self, scores: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return how similar each image is to the known images, float64 (n,), at most 0; see `familiarity_of`."""
        return self.familiarity_of(scores, similarity(features, self._known, self.limit.neighbours))

    def familiarity_of(self, scores: np.ndarray, similar: np.ndarray) -> np.ndarray:
        """Return the sum of the logarithms of two p-values: that of the score and that of the similarity to the known images.

        A similarity below the smallest of the validation images costs extra: the shortfall, in units of the gap from that smallest one to
        their median.
        """
        both = p_values(scores, self._scores) * p_values(similar, self._similarities)
        return np.log(both) - np.maximum(self._least - similar, 0) / self._spread

    def refused(self, scores: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return which images are strangers: bool (n,). See `familiarity`."""
        return self.familiarity(scores, features) < self.limit.limit
