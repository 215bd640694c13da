"""The specs of the bundled datasets: names, parameters and origins, without the code behind."""

from __future__ import annotations

from medbench.api import Citation, DatasetSpec, Parameter
from medbench_datasets._medmnist_facts import CITATION, MEDMNIST

USERS_OWN = Citation(
    title="The user's own data",
    authors="stated by the user",
    venue="unpublished, or cited by the user",
    year=2025,
)

DESCRIPTION = (
    Parameter(
        "domain",
        None,
        "modality, anatomy and source in one word; datasets that share it are never source and "
        "target of one another (default: user: and the name of the file or folder)",
        "str",
        optional=True,
    ),
    Parameter("modality", "unstated", "imaging modality, as tables show it", "str"),
    Parameter("licence", "unstated", "licence of the images, as tables show it", "str"),
    Parameter("non_commercial", False, "whether the licence forbids commercial use", "bool"),
)

SHAPE = (
    Parameter(
        "size",
        None,
        "resize images to size x size pixels, bilinear with antialiasing (default: their own size "
        "when all agree, 224 when they differ)",
        "int",
        minimum=8,
        maximum=4096,
        optional=True,
    ),
    Parameter(
        "channels",
        None,
        "1 or 3 (default: 1 when all images are greyscale, else 3)",
        "int",
        choices=(1, 3),
        optional=True,
    ),
)


def medmnist() -> list[DatasetSpec]:
    """One spec for each of the 18 MedMNIST sets."""
    return [
        DatasetSpec(
            name=f"medmnist/{name}",
            version="1",
            factory=f"medbench_datasets.medmnist_sets:open_{name}",
            fetch=f"medbench_datasets.medmnist_sets:fetch_{name}",
            summary=facts.summary,
            modality=facts.modality,
            domain=facts.domain,
            licence=facts.licence,
            citation=CITATION,
            task_kind=facts.task_kind,
            ordinal=facts.ordinal,
            non_commercial=facts.non_commercial,
            n_classes=facts.n_classes,
            n_dims=facts.n_dims,
            parameters=(
                Parameter("size", 28, "edge length in pixels", "int", choices=facts.sizes),
            ),
        )
        for name, facts in MEDMNIST.items()
    ]


TIME = Parameter(
    "time_column",
    None,
    "column with a number (days, say) or a date by which a patient's images are put in order",
    "str",
    optional=True,
)

USER = (
    DatasetSpec(
        name="npz",
        version="1",
        factory="medbench_datasets.npz:open_npz",
        summary="any .npz file in MedMNIST's layout, mapped from disk",
        modality="unstated",
        domain="user",
        licence="unstated",
        citation=USERS_OWN,
        takes_argument="PATH",
        parameters=(
            *DESCRIPTION,
            Parameter(
                "labels",
                None,
                "names of the classes in order, separated by commas",
                "str",
                optional=True,
            ),
        ),
    ),
    DatasetSpec(
        name="folder",
        version="1",
        factory="medbench_datasets.folder:open_folder",
        summary="image files in folders: class/* or site/class/*",
        modality="unstated",
        domain="user",
        licence="unstated",
        citation=USERS_OWN,
        takes_argument="PATH",
        parameters=(
            Parameter(
                "layout",
                "auto",
                "what the folders mean; auto goes by their depth",
                "str",
                choices=("auto", "class", "site/class"),
            ),
            *SHAPE,
            *DESCRIPTION,
        ),
    ),
    DatasetSpec(
        name="csv",
        version="1",
        factory="medbench_datasets.table:open_table",
        summary="a table of image files with labels and, where known, patients, sites and splits",
        modality="unstated",
        domain="user",
        licence="unstated",
        citation=USERS_OWN,
        takes_argument="PATH",
        parameters=(
            Parameter(
                "image_column",
                None,
                "column of file names (default: image or file)",
                "str",
                optional=True,
            ),
            Parameter("label_column", "label", "column of class names", "str"),
            Parameter(
                "patient_column",
                None,
                "column of patients (default: patient, if there)",
                "str",
                optional=True,
            ),
            Parameter(
                "site_column",
                None,
                "column of sites (default: site, if there); an empty cell is site (unknown)",
                "str",
                optional=True,
            ),
            Parameter(
                "split_column",
                None,
                "column with train, val or test (default: split, if there)",
                "str",
                optional=True,
            ),
            TIME,
            Parameter(
                "images",
                None,
                "folder of the images (default: the table's, or images/ in it)",
                "str",
                optional=True,
            ),
            Parameter("drop_unlabelled", False, "leave rows without a label out", "bool"),
            Parameter(
                "drop_labels",
                None,
                "labels whose rows are left out, separated by commas",
                "str",
                optional=True,
            ),
            *SHAPE,
            *DESCRIPTION,
        ),
    ),
)

# As of a table of images, but for the columns of files.
ALIGNED = DatasetSpec(
    name="aligned",
    version="1",
    factory="medbench_datasets.aligned:open_aligned",
    summary="a table with an image file for each of several aligned modalities in every row",
    modality="unstated",
    domain="user",
    licence="unstated",
    citation=USERS_OWN,
    takes_argument="PATH",
    parameters=(
        Parameter(
            "modalities",
            "",
            "columns of file names, one a modality, as in 'ct, mri' or 'ct=ct_file, mri=mri_file'",
            "str",
        ),
        *(p for p in USER[-1].parameters if p.name != "image_column"),
    ),
)

OMNIGLOT = DatasetSpec(
    name="omniglot",
    version="1",
    factory="medbench_datasets.omniglot:Omniglot",
    fetch="medbench_datasets.omniglot:fetch",
    summary="1623 handwritten characters, 20 drawings each; class splits lake and, where "
    "vinyals_{train,val,test}.json lie beside the images, vinyals (1028/172/423)",
    modality="drawings",
    domain="handwriting",
    licence="MIT",
    citation=Citation(
        title="Human-level concept learning through probabilistic program induction",
        authors="Lake, Salakhutdinov, Tenenbaum",
        venue="Science 350, 1332-1338",
        year=2015,
        url="https://doi.org/10.1126/science.aab3050",
    ),
    parameters=(
        Parameter(
            "size", 28, "edge length in pixels, reduced from 105", "int", minimum=8, maximum=105
        ),
        Parameter(
            "interpolation",
            "nearest",
            "how drawings are reduced; nearest is what the code of ProtoNet and MAML comes to, as "
            "PIL resizes 1-bit images in no other way; bilinear and lanczos are antialiased",
            "str",
            choices=("nearest", "bilinear", "lanczos"),
        ),
        Parameter(
            "rotations", True, "rotations by 90, 180 and 270 degrees as further classes", "bool"
        ),
        Parameter("invert", True, "ink 255 on black 0, as in the literature", "bool"),
    ),
)

SYNTHETIC = DatasetSpec(
    name="synthetic",
    version="1",
    factory="medbench_datasets.synthetic.dataset:open_synthetic",
    summary="images made on the fly from a seed: cells, fundus, xray or ct; with sites, patients, "
    "true masks and boxes",
    takes_argument="DOMAIN",
    modality="simulated",
    domain="synthetic",
    licence="Apache-2.0",
    citation=Citation(
        title="medbench: a plugin-based benchmark for few-shot learning on medical images",
        authors="The medbench authors",
        venue="software",
        year=2025,
    ),
    parameters=(
        Parameter("size", 28, "edge length in pixels", "int", minimum=16, maximum=512),
        Parameter("images_per_class", 60, "images of each class", "int", minimum=8, maximum=10000),
        Parameter("n_classes", 30, "classes", "int", minimum=6, maximum=30),
        Parameter(
            "labels",
            "classes",
            "one class an image, its two findings as labels of their own (multilabel), or masks or "
            "boxes of its lesions (of its cell)",
            "str",
            choices=("classes", "findings", "masks", "boxes"),
        ),
        Parameter("seed", 0, "everything is drawn from it", "int", minimum=0, maximum=2**62),
    ),
)

PATIENTS = DatasetSpec(
    name="synthetic-patients",
    version="1",
    factory="medbench_datasets.synthetic.patients:open_patients",
    summary="images made on the fly from a seed: cells of patients who have images of all classes, "
    "in order of time, each with a stain of their own",
    modality="simulated light microscopy",
    domain="synthetic-patients",
    licence="Apache-2.0",
    citation=SYNTHETIC.citation,
    parameters=(
        Parameter("size", 28, "edge length in pixels", "int", minimum=16, maximum=512),
        Parameter("n_patients", 60, "patients", "int", minimum=10, maximum=10000),
        Parameter(
            "images_per_class",
            6,
            "images of each class of each patient",
            "int",
            minimum=2,
            maximum=1000,
        ),
        Parameter("n_classes", 5, "classes, which all patients have", "int", minimum=2, maximum=30),
        Parameter(
            "labels",
            "classes",
            "one class an image, or masks of its cell",
            "str",
            choices=("classes", "masks"),
        ),
        Parameter("seed", 0, "everything is drawn from it", "int", minimum=0, maximum=2**62),
    ),
)

VESSELS = DatasetSpec(
    name="synthetic-vessels",
    version="1",
    factory="medbench_datasets.synthetic.vessels:open_vessels",
    summary="volumes made on the fly from a seed: winding vessels, whose turns no slice shows",
    modality="simulated angiography",
    domain="synthetic-vessels",
    licence="Apache-2.0",
    citation=SYNTHETIC.citation,
    n_classes=16,
    n_dims=3,
    parameters=(
        Parameter("size", 16, "edge length in voxels", "int", minimum=12, maximum=128),
        Parameter("images_per_class", 40, "volumes of each class", "int", minimum=10, maximum=5000),
        Parameter(
            "labels",
            "classes",
            "one class a volume, or masks of its vessel",
            "str",
            choices=("classes", "masks"),
        ),
        Parameter("seed", 0, "everything is drawn from it", "int", minimum=0, maximum=2**62),
    ),
)

SCANS = DatasetSpec(
    name="synthetic-scans",
    version="1",
    factory="medbench_datasets.synthetic.scans:open_scans",
    summary="lesions in aligned CT and MRI made on the fly from a seed; each shows half of a class",
    modality="simulated CT and MRI",
    domain="synthetic-scans",
    licence="Apache-2.0",
    citation=SYNTHETIC.citation,
    n_classes=16,
    parameters=(
        Parameter("size", 28, "edge length in pixels", "int", minimum=16, maximum=512),
        Parameter("images_per_class", 40, "images of each class", "int", minimum=10, maximum=10000),
        Parameter("seed", 0, "everything is drawn from it", "int", minimum=0, maximum=2**62),
    ),
)
