"""Numbering of cells from 1, independent of the labels that a tracking program used."""

from __future__ import annotations

import numpy as np

_SMALL = 2**24  # smaller labels are looked up in a table of this size


def names_of(labels: np.ndarray) -> np.ndarray:
    """Return the sorted labels other than 0 in images (time, y, x) without negative labels: (cell,)."""
    if (largest := int(labels.max(initial=0))) < _SMALL:
        present = np.zeros(largest + 1, dtype=bool)
        for image in labels:
            present[image] = True
        names = np.flatnonzero(present)
    else:
        names = np.unique(np.concatenate([np.unique(image) for image in labels]))
    return names[names > 0]


def numbered(labels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Replace the k-th of the sorted names (cell,) by k + 1 in images (time, y, x) of these names and 0: uint16."""
    if (largest := int(names.max(initial=0))) < _SMALL:
        table = np.zeros(largest + 1, dtype=np.uint16)
        table[names] = np.arange(1, len(names) + 1)
        return table[labels]
    return np.stack([np.searchsorted(names, image) + (image > 0) for image in labels]).astype(np.uint16)
