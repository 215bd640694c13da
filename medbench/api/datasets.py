"""How a dataset behaves: where it looks, what it says of itself, and what it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medbench.api.specs import TaskKind
from medbench.errors import ContractError, DataMissing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Place:
    """Where a dataset may look and write.

    ``data`` is the folder of the user's data (``MEDBENCH_DATA``), None when it is not set;
    ``cache`` is a folder for what is derived from it.
    """

    data: Path | None
    cache: Path

    def find(self, *candidates: str, hint: str) -> Path:
        """The first of `candidates` (absolute, or below the data folder) that exists.

        Raises `DataMissing` naming every place looked at, followed by `hint`.
        """
        looked: list[str] = []
        for candidate in candidates:
            path = Path(candidate).expanduser()
            if not path.is_absolute():
                if self.data is None:
                    continue
                path = self.data / path
            if path.exists():
                return path
            looked.append(str(path))
        if self.data is None and not looked:
            names = " or ".join(candidates)
            raise DataMissing(
                f"{names} was not looked for: MEDBENCH_DATA is not set. Set it to the folder that "
                f"holds your data. {hint}".strip()
            )
        raise DataMissing(f"Not found: {', '.join(looked)}. {hint}".strip())


@dataclass(frozen=True)
class ClassSplit:
    """Class indices for meta-training, meta-validation and meta-test; disjoint."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Modality:
    """One of several aligned inputs that make up an image: its name, and its channels, 1 or 3.

    Names are letters, digits, ``_``, ``-`` and ``.``; they stand in tables.
    """

    name: str
    channels: int = 1


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of one opened dataset; what a spec says in general, this says in particular."""

    name: str
    label_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    """``(H, W, C)`` or ``(D, H, W, C)``; C is 1 or 3, or the sum over `modalities`."""
    domain: str
    modality: str
    licence: str
    task_kind: TaskKind = "classification"
    ordinal: bool = False
    non_commercial: bool = False
    site_names: tuple[str, ...] = ()
    class_splits: Mapping[str, ClassSplit] = field(default_factory=dict)
    modalities: tuple[Modality, ...] = ()
    """Which channels of an image are which modality, in order; empty where there is one alone."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """True boxes of one image.

    ``xyxy``: ``(k, 4)`` float64, left, top, right and bottom edges in pixels of the image as `read`
    gives it, from its top left corner (a box around the first pixel alone is 0, 0, 1, 1);
    ``labels``: ``(k,)`` int64; ``ignored``: ``(k,)`` bool, regions in which detections count
    neither as found nor as false (COCO's crowds, VOC's difficult objects).
    """

    xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Detections:
    """Predicted boxes of one query image: as `Boxes`, each with a score, higher for surer."""

    xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


class Dataset(ABC):
    """Labelled images with random access; nothing is decoded before `read` asks for it.

    Attributes (numpy arrays over the ``n`` images):
        labels: ``(n,)`` int64 class indices, or ``(n, n_labels)`` uint8 for multilabel data. Where
            the targets are masks or boxes: ``(n, n_labels)`` uint8, which classes occur in an
            image.
        splits: ``(n,)`` uint8, 0 train, 1 val, 2 test; None when the data come without.
        sites: ``(n,)`` int64 indices into ``info.site_names``; None when not known.
        patients: ``(n,)`` int64 identities; None when not known.
        spacings: ``(n, 2)`` or ``(n, 3)`` float64, mm between neighbouring pixels along each axis
            of the images as `read` gives them; None when not known.
        times: ``(n,)`` float64, when an image was taken, compared within a patient alone (days
            since the first one, say), NaN where it is not known; None when no time is.
    """

    info: DatasetInfo
    labels: NDArray[Any]
    splits: NDArray[np.uint8] | None = None
    sites: NDArray[np.int64] | None = None
    patients: NDArray[np.int64] | None = None
    spacings: NDArray[np.float64] | None = None
    times: NDArray[np.float64] | None = None

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal BLAKE2b over everything that determines pixels, labels and splits."""

    @abstractmethod
    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images ``(len(indices), *info.image_shape)`` uint8, in the order asked for.

        Raises `DataError` that names the file when an image cannot be decoded.
        """

    def read_masks(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True masks ``(len(indices), n_labels, H, W)`` or ``(..., D, H, W)``.

        As large as the images of `read`; classes may overlap. Needed with the task kind
        ``segmentation``; raises `DataError` that names the file when one cannot be decoded.
        """
        raise ContractError(
            f"{self.info.name} has no masks: {type(self).__name__} does not define read_masks."
        )

    def read_boxes(self, indices: NDArray[np.int64]) -> list[Boxes]:
        """True boxes of each image, in its pixels. Needed with the task kind ``detection``."""
        raise ContractError(
            f"{self.info.name} has no boxes: {type(self).__name__} does not define read_boxes."
        )

    def __len__(self) -> int:
        return len(self.labels)
