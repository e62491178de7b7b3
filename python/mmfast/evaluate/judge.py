"""The judge: a classifier that has seen nothing but real training pixels.

It must first read real held-out images; a judge that cannot may not judge anything else. Kernel
support vectors (scikit-learn's `SVC`, RBF) on small grey images, each training image also shifted by
one pixel in the four directions: on the 8x8 digit scans at 16x16 that reads 0.993-1.000 of the
held-out ones and 0.99 of held-out ones that are shifted, against 0.92-0.94 without the shifts.
Training costs O(N^2): a second for 1,500 images; give it some thousands, not millions.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmfast.errors import MmfastError, UsageError

FloatArray = npt.NDArray[np.float32]
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
_REGULARISATION = 10.0


class WeakJudgeError(MmfastError):
    """The classifier reads real held-out images too badly to judge generated ones."""


class Judge:
    """Reads labels off pixels. Deterministic: the same training images, the same readings.

    Attributes:
        labels: all labels it knows, sorted.
        size: images are `[size, size]`.
    """

    def __init__(self, pixels: FloatArray, labels: Sequence[str]) -> None:
        """Trains on `pixels`, float32 `[N, size, size]` in [0, 1], and their N labels.

        Raises:
            UsageError: fewer than two labels, or scikit-learn is not installed.
        """
        try:
            from sklearn.svm import SVC
        except ImportError as error:
            raise UsageError(
                "the judge needs scikit-learn, which is not installed: pip install 'mmfast[eval]'"
            ) from error
        self.labels = tuple(sorted(set(labels)))
        if len(self.labels) < 2:
            raise UsageError(f"a judge needs two labels or more to tell apart, found {self.labels}")
        self.size = int(pixels.shape[1])
        shifted = np.concatenate([_shifted(pixels, down, right) for down, right in _SHIFTS])
        self._classifier = SVC(kernel="rbf", C=_REGULARISATION, gamma="scale")
        self._classifier.fit(shifted.reshape(len(shifted), -1), np.tile(labels, len(_SHIFTS)))

    def read(self, pixels: FloatArray) -> list[str]:
        """The label of each image of `pixels`, float32 `[N, size, size]` in [0, 1]."""
        return [str(label) for label in self._classifier.predict(pixels.reshape(len(pixels), -1))]


def _shifted(pixels: FloatArray, down: int, right: int) -> FloatArray:
    """Moves all images by whole pixels; the border that comes in repeats the edge."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = pixels.shape[1:]
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
