"""A torch dataset of stored features.

It is the one module of the store that imports torch, so it is imported by its own name:

>>> from icecore.store.torch_dataset import FeatureDataset  # doctest: +SKIP
>>> loader = DataLoader(FeatureDataset(array, labels), batch_size=256, shuffle=True)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from .array import FeatureArray
from .errors import UnknownLabelError

__all__ = ["FeatureDataset"]

Sample: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""features ``(D,)`` float32, and the image's label where labels were given"""


class FeatureDataset(Dataset[Sample]):
    """Features of a ``FeatureArray`` as a map-style dataset; they stay on disk until they are asked for.

    A DataLoader that fetches batches (torch 2.0 or later does) reads each batch at once. Workers that are forked share
    the open segments; workers that are spawned open them again.
    """

    def __init__(
        self,
        array: FeatureArray,
        labels: Mapping[str, int] | Mapping[str, float] | Sequence[Any] | np.ndarray | None = None,
    ) -> None:
        """Join features and labels.

        Parameters
        ----------
        array
            ``(n, D)``; read as float32, whatever its own dtype is.
        labels
            Label of each image id (more than the array's may be there), or of each row ``(n,)`` or ``(n, k)``.
            Integers and truth values come as int64, floats as float32. None: features alone.

        Raises
        ------
        UnknownLabelError
            When images have no label.
        ValueError
            When there are not as many labels as rows, or they are no numbers.
        """
        self.array = array.astype("float32")
        """the features, read as float32"""
        self.labels = None if labels is None else _label_tensor(array, labels)
        """``(n,)`` or ``(n, k)``, int64 or float32; None without labels"""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Sample:
        features = torch.from_numpy(self.array[int(index)])  # (D,)
        return features if self.labels is None else (features, self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Give several samples, read at once; DataLoader calls this where it is there."""
        features = torch.from_numpy(self.array[np.asarray(indices, dtype=np.int64)])  # (B, D)
        if self.labels is None:
            return list(features)
        return list(zip(features, self.labels[torch.as_tensor(indices)], strict=True))


def _label_tensor(array: FeatureArray, labels: Any) -> torch.Tensor:
    values = np.asarray(_labels_by_row(array, labels) if isinstance(labels, Mapping) else labels)
    if len(values) != len(array):
        raise ValueError(f"{len(values):,} labels for {len(array):,} images")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"labels must be numbers, found {values.dtype}: number the classes first")
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64))


def _labels_by_row(array: FeatureArray, labels: Mapping[str, Any]) -> list[Any]:
    missing = [image_id for image_id in array.ids if image_id not in labels]
    if missing:
        raise UnknownLabelError(missing, len(array))
    return [labels[image_id] for image_id in array.ids]
