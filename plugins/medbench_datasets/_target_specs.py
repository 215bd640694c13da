"""The specs of users' own data with masks, boxes or volumes."""

from __future__ import annotations

from typing import Literal

from medbench.api import DatasetSpec, Parameter, TaskKind
from medbench_datasets._specs import DESCRIPTION, SHAPE, TIME, USERS_OWN


def _text(name: str, help_text: str) -> Parameter:
    return Parameter(name, None, help_text, "str", optional=True)


_COLUMNS = (
    _text("patient_column", "column of patients (default: patient, if there)"),
    _text("site_column", "column of sites (default: site, if there); empty is site (unknown)"),
    _text("split_column", "column with train, val or test (default: split, if there)"),
)
_TABLE = (
    _text("table", "a CSV table in the folder that tells sites, patients or splits of images"),
    _text("image_column", "column of image names in it, with or without suffix (image, file, id)"),
    *_COLUMNS,
)
_VOLUME = (
    Parameter("slices", False, "each axial slice as an image of its own", "bool"),
    _text(
        "window",
        "the values that become black and white, as in '-160, 240' (default: 0.5 and 99.5 % of "
        "the values of each volume)",
    ),
    Parameter(
        "size",
        None,
        "bring volumes (or slices) to this edge length (default: their own when all agree; "
        "224 for slices that differ)",
        "int",
        minimum=8,
        maximum=1024,
        optional=True,
    ),
)
_MODALITY = _text("modality", "imaging modality, as tables show it (default: as the files say)")
_LABELS = _text("labels", "names of the classes in order of their values, separated by commas")


def _user(
    name: str,
    factory: str,
    summary: str,
    kind: TaskKind,
    *parameters: Parameter,
    argument: str = "FOLDER",
    n_dims: Literal[2, 3] = 2,
    stated_modality: bool = False,
) -> DatasetSpec:
    described = [
        _MODALITY if stated_modality and parameter.name == "modality" else parameter
        for parameter in DESCRIPTION
    ]
    return DatasetSpec(
        name=name,
        version="1",
        factory=f"medbench_datasets.{factory}",
        summary=summary,
        modality="unstated",
        domain="user",
        licence="unstated",
        citation=USERS_OWN,
        task_kind=kind,
        n_dims=n_dims,
        takes_argument=argument,
        parameters=(*parameters, *described),
    )


TARGETS = (
    _user(
        "voc",
        "voc:open_voc",
        "a folder in Pascal VOC's layout: Annotations/*.xml with boxes, JPEGImages/*",
        "detection",
        Parameter(
            "origin",
            1,
            "number of the first pixel: 1 as in VOC, 0 where a tool counts from 0",
            "int",
            choices=(0, 1),
        ),
        Parameter("lists", True, "use the images and parts that ImageSets/Main lists", "bool"),
        *_TABLE,
        *SHAPE,
    ),
    _user(
        "coco",
        "coco:open_coco",
        "images with COCO json files: boxes, or outlines with task=segmentation",
        "detection",
        Parameter(
            "task",
            "detection",
            "boxes, or masks painted from polygons and run lengths",
            "str",
            choices=("detection", "segmentation"),
        ),
        _text("annotations", "the json files in the folder, separated by commas (default: found)"),
        _text("image_folder", "folder of the images in the folder (default: found)"),
        *_TABLE,
        *SHAPE,
    ),
    _user(
        "masks",
        "label_maps:open_masks",
        "images/* with label maps of the same names in labels/*: classes, or single objects",
        "segmentation",
        Parameter(
            "kind",
            "semantic",
            "what a pixel's value is: its class, or the number of its object",
            "str",
            choices=("semantic", "instance"),
        ),
        Parameter(
            "task",
            "segmentation",
            "masks, or (kind=instance) a box around each object",
            "str",
            choices=("segmentation", "detection"),
        ),
        _LABELS,
        Parameter("image_folder", "images", "folder of the images in the folder", "str"),
        Parameter("mask_folder", "labels", "folder of the label maps in the folder", "str"),
        *_TABLE,
        *SHAPE,
    ),
    _user(
        "boxes",
        "box_table:open_boxes",
        "a table of images with boxes x, y, w, h, and where known patients, sites and splits",
        "detection",
        _text(
            "prefixes",
            "classes whose boxes are in columns of the image's row: right, left for right_x, "
            "right_y, right_w, right_h and left_x ... (default: a row is a box)",
        ),
        Parameter("label_column", "label", "column of class names, where a row is a box", "str"),
        _text("image_column", "column of file names (default: image or file)"),
        *_COLUMNS,
        TIME,
        _text("images", "folder of the images (default: the table's, or images/ in it)"),
        *SHAPE,
        argument="PATH",
    ),
    _user(
        "npz-masks",
        "npz_masks:open_npz_masks",
        "any .npz file of images and masks in MedSegBench's layout, mapped from disk",
        "segmentation",
        _LABELS,
        _text("category", "which set of a file with several: 1 for train_images_1, train_label_1"),
        argument="PATH",
    ),
    _user(
        "msd",
        "msd:open_msd",
        "NIfTI volumes with masks in the Medical Segmentation Decathlon's layout",
        "segmentation",
        *_VOLUME,
        Parameter(
            "channel",
            0,
            "which of the channels of a volume with several; -1: all, as aligned modalities",
            "int",
            minimum=-1,
        ),
        *_TABLE,
        n_dims=3,
        stated_modality=True,
    ),
    _user(
        "dicom",
        "dicom:open_dicom",
        "DICOM series read to volumes or slices; classes by folder or by a header's keyword",
        "classification",
        Parameter(
            "label",
            "folder",
            "where a series' class stands: folder (the first below the data's), or a DICOM keyword",
            "str",
        ),
        *_VOLUME,
        *_TABLE,
        n_dims=3,
        stated_modality=True,
    ),
)
