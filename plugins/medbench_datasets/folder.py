"""Folders of images as a dataset: ``folder:PATH`` with ``class/*`` or ``site/class/*``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medbench.api import DataError, DatasetInfo, Place
from medbench_datasets._images import SUFFIXES, ImageFiles, image_shape, read_headers
from medbench_datasets._user import located

_LAYOUTS = ("auto", "class", "site/class")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def open_folder(
    place: Place,
    *,
    argument: str,
    layout: str = "auto",
    size: int | None = None,
    channels: int | None = None,
    domain: str | None = None,
    modality: str = "unstated",
    licence: str = "unstated",
    non_commercial: bool = False,
) -> ImageFiles:
    """The images below one folder; classes are the folders' names, sorted, over all sites.

    Raises `DataError` for a layout that is not clear, a file that is not an image, a class folder
    with nothing in it.
    """
    root = located(place, argument, kind="folder", example="folder:wbc_sites")
    if layout not in _LAYOUTS:
        raise DataError(f"layout={layout!r} is not known; expected {', '.join(_LAYOUTS)}.")
    if layout == "auto":
        layout = _guess_layout(root)
    rows = list(_site_rows(root) if layout == "site/class" else _class_rows(root, root))
    if not rows:
        raise DataError(f"{root} holds no images; expected folders {layout}/* with images in them.")
    names = [name for name, _, _ in rows]
    classes = sorted({label for _, label, _ in rows})
    site_names = sorted({site for _, _, site in rows})
    has_sites = layout == "site/class"
    shape = image_shape(read_headers(root, names, place.cache), size, channels)
    info = DatasetInfo(
        name=f"folder:{argument}",
        label_names=tuple(classes),
        image_shape=shape,
        domain=domain or f"user:{root.name}",
        modality=modality,
        licence=licence,
        non_commercial=non_commercial,
        site_names=tuple(site_names) if has_sites else (),
    )
    labels = np.array([classes.index(label) for _, label, _ in rows], np.int64)
    sites = np.array([site_names.index(site) for _, _, site in rows], np.int64)
    return ImageFiles(
        info,
        root=root,
        names=names,
        cache=place.cache,
        labels=labels,
        sites=sites if has_sites else None,
    )


def _guess_layout(root: Path) -> str:
    folders = _folders(root)
    if not folders:
        raise DataError(
            f"{root} has no folders in it; expected one for each class (class/*), or one for each "
            "site with the classes inside (site/class/*)."
        )
    with_files = [f for f in folders if _files(f)]
    with_folders = [f for f in folders if _folders(f)]
    if with_files and with_folders:
        raise DataError(
            f"{root}: the layout is not clear, for {with_files[0].name}/ holds files and "
            f"{with_folders[0].name}/ holds folders. Expected class/* or site/class/* throughout: "
            "move files out of place, or say layout=class or layout=site/class."
        )
    return "site/class" if with_folders else "class"


def _site_rows(root: Path) -> Iterator[tuple[str, str, str]]:
    _refuse_loose_images(root, "site/class/*")
    for site in _folders(root):
        rows = list(_class_rows(site, root))
        if not rows:
            raise DataError(f"{site} holds no images; expected class folders with images in them.")
        yield from rows


def _class_rows(parent: Path, root: Path) -> Iterator[tuple[str, str, str]]:
    """Name below `root`, class and site of every image in the class folders of `parent`."""
    _refuse_loose_images(parent, "class/*")
    for folder in _folders(parent):
        deeper = _folders(folder)
        if deeper:
            raise DataError(
                f"{deeper[0]} is a folder inside the class folder {folder.name}/; expected images "
                "there. Move its images up, or say layout=site/class if sites come first."
            )
        files = _files(folder)
        # A site may lack a class, but a class that is nowhere is a mistake.
        if not files and parent == root:
            raise DataError(f"{folder} holds no images: fill it or take it away.")
        for file in files:
            yield file.relative_to(root).as_posix(), folder.name, parent.name


def _refuse_loose_images(folder: Path, layout: str) -> None:
    loose = [f for f in _files(folder) if f.suffix.lower() in SUFFIXES]
    if loose:
        raise DataError(
            f"{loose[0]} lies outside any class folder ({len(loose)} such images); expected "
            f"{layout}. Move it into its class."
        )


def _visible(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if not p.name.startswith(".") and p.name.lower() not in _SYSTEM_FILES
    )


def _folders(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.is_dir()]


def _files(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if not p.is_dir()]
