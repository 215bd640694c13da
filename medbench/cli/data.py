"""``medbench data``: which data are here, get them, check them."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import click

from medbench.errors import DataError, DataMissing, MedbenchError, UsageError
from medbench.plugins import load_factory, registry, resolve_params

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medbench.api import Dataset

_BLOCK_BYTES = 64 << 20


@click.group("data")
def data_command() -> None:
    """List, download or check data below the folder that MEDBENCH_DATA names."""


def parse_params(params: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``--param NAME=VALUE`` options. Raises `UsageError`."""
    from medbench.yamlfile import Document

    found: dict[str, Any] = {}
    for text in params:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--param {text!r}: write NAME=VALUE.")
        found[key] = Document(f"value: {value}", f"--param {key}").value["value"]
    return found


@data_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the datasets, and which of them are here."""
    from medbench.opened import default_place, open_dataset
    from medbench.protocols import DatasetRef

    place = default_place()
    rows = []
    for name, entry in registry().entries["datasets"].items():
        spec = entry.spec
        if spec.takes_argument:
            state = f"yours: {name}:{spec.takes_argument}"
        else:
            try:
                opened = open_dataset(registry(), DatasetRef(name=name), place)
                state = f"here, {len(opened.dataset)} images"
            except DataMissing:
                state = "missing, 'medbench data get' has it" if spec.fetch else "missing"
            except MedbenchError as error:
                state = f"unusable: {error}"
        rows.append({"name": name, "state": state, "licence": spec.licence, "domain": spec.domain})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max(len(r["name"]) for r in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['state']}  ({row['licence']})")
    if place.data is None:
        click.echo("MEDBENCH_DATA is not set: set it to the folder that holds your data.", err=True)


@data_command.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Such as size=64.")
def get(names: tuple[str, ...], params: tuple[str, ...]) -> None:
    """Download datasets into MEDBENCH_DATA, and check them.

    \b
    Examples:
      medbench data get medmnist/retina medmnist/blood
      medbench data get medmnist/path --param size=64
    """
    from medbench.opened import default_place

    place = default_place()
    if place.data is None:
        raise UsageError("MEDBENCH_DATA is not set: set it to the folder to download into.")
    for name in names:
        entry = registry().get("datasets", name)
        if entry.spec.fetch is None:
            raise UsageError(f"{name} cannot be downloaded; see 'medbench info {name}'.")
        resolved = resolve_params(entry, parse_params(params))
        click.echo(f"{name}: downloading ...")
        for path in load_factory(entry, entry.spec.fetch)(place, **resolved):
            click.echo(f"{name}: {path}")


@data_command.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Such as size=64.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(names: tuple[str, ...], params: tuple[str, ...], as_json: bool) -> None:
    """Open datasets, decode every image with its mask or boxes, and report what is there.

    \b
    Examples:
      medbench data check medmnist/retina
      medbench data check npz:mine.npz
      medbench data check csv:chest/index.csv --param label_column=view
      medbench data check masks:nuclei --param kind=instance
    """
    import numpy as np

    from medbench.opened import default_place, open_dataset
    from medbench.protocols import DatasetRef

    place = default_place()
    reports = []
    for name in names:
        opened = open_dataset(registry(), DatasetRef(name=name, params=parse_params(params)), place)
        dataset = opened.dataset
        info = dataset.info
        n = len(dataset)
        step, n_boxes = _BLOCK_BYTES // max(1, math.prod(info.image_shape)), 0
        if info.task_kind == "segmentation":
            step //= len(info.label_names)
        step = int(min(max(step, 1), 256))
        bar = click.progressbar(range(0, n, step), label=name, file=sys.stderr)
        with bar as starts:
            for start in starts:
                rows = np.arange(start, min(n, start + step))
                images = dataset.read(rows)
                if images.shape != (len(rows), *info.image_shape) or images.dtype != np.uint8:
                    raise DataError(
                        f"{name}: images {start} and on are {images.shape} {images.dtype}, and "
                        f"{(len(rows), *info.image_shape)} uint8 was promised."
                    )
                n_boxes += _check_targets(name, dataset, rows)
        report: dict[str, Any] = {
            "name": name,
            "images": n,
            "shape": list(info.image_shape),
            "task_kind": info.task_kind,
            "domain": info.domain,
            "modality": info.modality,
            "licence": info.licence,
            "digest": dataset.digest,
            "splits": None,
            "sites": None,
            "patients": None,
        }
        if info.modalities:
            report["modalities"] = {m.name: m.channels for m in info.modalities}
        if info.task_kind == "detection":
            report["boxes"] = n_boxes
        if dataset.spacings is not None:
            report["spacing_mm"] = np.median(dataset.spacings, axis=0).round(4).tolist()
        if dataset.labels.ndim == 1:
            counts = np.bincount(dataset.labels, minlength=len(info.label_names))
            report["classes"] = dict(zip(info.label_names, counts.tolist(), strict=True))
        else:
            report["classes"] = dict(
                zip(info.label_names, dataset.labels.sum(axis=0).tolist(), strict=True)
            )
        if dataset.splits is not None:
            counts = np.bincount(dataset.splits, minlength=3)
            report["splits"] = dict(zip(("train", "val", "test"), counts.tolist(), strict=True))
        if dataset.sites is not None:
            counts = np.bincount(dataset.sites, minlength=len(info.site_names))
            report["sites"] = dict(zip(info.site_names, counts.tolist(), strict=True))
        if dataset.patients is not None:
            report["patients"] = len(np.unique(dataset.patients))
        reports.append(report)
    if as_json:
        click.echo(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1))
        return
    for report in reports:
        click.echo(f"{report.pop('name')}: fine")
        for key, value in report.items():
            if value is None:
                continue
            if isinstance(value, dict):
                shown = list(value.items())[:12]
                text = ", ".join(f"{k} {v}" for k, v in shown)
                more = len(value) - len(shown)
                value = text + (f", and {more} more" if more else "")
            click.echo(f"  {key}: {value}")


def _check_targets(name: str, dataset: Dataset, rows: NDArray[np.int64]) -> int:
    """Read masks or boxes, hold them to what the dataset promises; how many boxes there are."""
    import numpy as np

    info, labels = dataset.info, dataset.labels
    said = "labels must be 1 exactly for the classes that occur in an image"
    if info.task_kind == "segmentation":
        masks = dataset.read_masks(rows)
        wanted = (len(rows), len(info.label_names), *info.image_shape[:-1])
        if masks.shape != wanted or masks.dtype != np.bool_:
            raise DataError(
                f"{name}: masks {rows[0]} and on are {masks.shape} {masks.dtype}, and {wanted} "
                "bool was promised."
            )
        # Resizing may lose a small structure, and never makes one.
        found = masks.any(axis=tuple(range(2, masks.ndim)))
        if (found & (labels[rows] == 0)).any():
            raise DataError(
                f"{name}: masks {rows[0]} and on hold classes that labels lack; {said}."
            )
        return 0
    if info.task_kind != "detection":
        return 0
    n_boxes = 0
    height, width = info.image_shape[:2]
    for row, boxes in zip(rows.tolist(), dataset.read_boxes(rows), strict=True):
        n_boxes += len(boxes.labels)
        limits = np.array([width, height, width, height]) + 1e-6
        if (boxes.xyxy < -1e-6).any() or (boxes.xyxy > limits).any():
            raise DataError(f"{name}: image {row} has a box outside its {width} x {height} pixels.")
        present = np.zeros(len(info.label_names), np.bool_)
        present[boxes.labels[~boxes.ignored]] = True
        if (present != labels[row].astype(np.bool_)).any():
            raise DataError(f"{name}: boxes and labels of image {row} differ; {said}.")
    return n_boxes
