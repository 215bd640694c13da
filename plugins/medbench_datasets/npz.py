"""Any ``.npz`` file in MedMNIST's layout, as a dataset: ``npz:PATH``."""

from __future__ import annotations

from medbench.api import DataError, DatasetInfo, Place
from medbench_datasets._layout import NpzDataset, check_range, read_contents
from medbench_datasets._npz import NpzFile
from medbench_datasets._user import located, split_names


def open_npz(
    place: Place,
    *,
    argument: str,
    domain: str | None = None,
    modality: str = "unstated",
    licence: str = "unstated",
    non_commercial: bool = False,
    labels: str | None = None,
) -> NpzDataset:
    """The images of one ``.npz`` file, absolute or below the data folder.

    Raises `DataMissing` when there is no such file and `DataError` when it is not what it should
    be; the file may have ``{part}_sites`` and ``{part}_patients`` besides images and labels.
    """
    path = located(place, argument, kind="file", example="npz:pbc28.npz")
    names = split_names(labels) if labels else None
    contents = read_contents(NpzFile(path, place.cache), n_dims=None, n_classes=None)
    found = contents.labels
    multilabel = found.ndim == 2
    if names is not None:
        check_range(found, len(names), path)
    else:
        n_classes = found.shape[1] if multilabel else int(found.max()) + 1
        empty = [] if multilabel else sorted(set(range(n_classes)) - {int(c) for c in set(found)})
        if empty:
            raise DataError(
                f"{path}: labels go up to {n_classes - 1}, but no image has label "
                f"{', '.join(map(str, empty[:5]))}{' ...' if len(empty) > 5 else ''}. Number the "
                "classes from 0 without gaps, or name them all in the parameter `labels`."
            )
        names = tuple(f"class {k}" for k in range(n_classes))
    info = DatasetInfo(
        name=f"npz:{argument}",
        label_names=names,
        image_shape=contents.image_shape,
        domain=domain or f"user:{path.stem}",
        modality=modality,
        licence=licence,
        non_commercial=non_commercial,
        task_kind="multilabel" if multilabel else "classification",
        site_names=contents.site_names,
    )
    return NpzDataset(info, contents, path, place.cache)
