"""What a list of datasets shows about MedMNIST without importing the medmnist package.

Only what the package does not say, or says only in prose, is kept here; a test holds the rest
against ``medmnist.INFO``.

A domain is imaging modality, anatomy and source: Organ{A,C,S} and Organ3D are cut from the same
CT scans and share one. ChestMNIST (adults, NIH) and PneumoniaMNIST (children, Guangzhou) are both
chest radiographs but of different hospitals and patients, so they are two domains: a protocol that
wants them apart by anatomy can leave one out by name. OCT and pneumonia come from one paper, not
from the same eyes or scanners. BloodMNIST's domain is that of every set made from the Barcelona
collection, whatever its subset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medbench.api import Citation

CITATION = Citation(
    title="MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image "
    "classification",
    authors="Yang, Shi, Wei, Liu, Zhao, Ke, Pfister, Ni",
    venue="Scientific Data 10, 41",
    year=2023,
    url="https://doi.org/10.1038/s41597-022-01721-8",
)


@dataclass(frozen=True)
class Facts:
    """One MedMNIST set, as a list of datasets shows it."""

    flag: str
    n_classes: int
    modality: str
    domain: str
    summary: str
    n_dims: Literal[2, 3] = 2
    task_kind: Literal["classification", "multilabel"] = "classification"
    ordinal: bool = False
    licence: str = "CC BY 4.0"
    non_commercial: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Edge lengths in pixels that are published."""
        return (28, 64, 128, 224) if self.n_dims == 2 else (28, 64)


_CT = "abdominal CT"
_ORGANS = "organs in abdominal CT of the liver tumour benchmark"

MEDMNIST: dict[str, Facts] = {
    "path": Facts("pathmnist", 9, "histology", "histology-colon", "colorectal tissue, H&E"),
    "chest": Facts(
        "chestmnist",
        14,
        "radiography",
        "chest-xray",
        "findings in chest radiographs of adults",
        task_kind="multilabel",
    ),
    "derma": Facts(
        "dermamnist",
        7,
        "dermatoscopy",
        "dermatoscopy",
        "pigmented skin lesions",
        licence="CC BY-NC 4.0",
        non_commercial=True,
    ),
    "oct": Facts("octmnist", 4, "optical coherence tomography", "retinal-oct", "retinal diseases"),
    "pneumonia": Facts(
        "pneumoniamnist",
        2,
        "radiography",
        "pediatric-chest-xray",
        "pneumonia in chest radiographs of children",
    ),
    "retina": Facts(
        "retinamnist",
        5,
        "fundus photography",
        "fundus",
        "grades of diabetic retinopathy",
        ordinal=True,
    ),
    "breast": Facts(
        "breastmnist", 2, "ultrasound", "breast-ultrasound", "breast tumours in ultrasound"
    ),
    "blood": Facts(
        "bloodmnist", 8, "light microscopy", "blood-microscopy", "normal peripheral blood cells"
    ),
    "tissue": Facts(
        "tissuemnist",
        8,
        "fluorescence microscopy",
        "kidney-microscopy",
        "human kidney cortex cells",
    ),
    "organa": Facts("organamnist", 11, _CT, "abdominal-ct", f"{_ORGANS}, axial"),
    "organc": Facts("organcmnist", 11, _CT, "abdominal-ct", f"{_ORGANS}, coronal"),
    "organs": Facts("organsmnist", 11, _CT, "abdominal-ct", f"{_ORGANS}, sagittal"),
    "organ3d": Facts("organmnist3d", 11, _CT, "abdominal-ct", f"{_ORGANS}, volumes", n_dims=3),
    "nodule3d": Facts(
        "nodulemnist3d", 2, "chest CT", "lung-nodule-ct", "malignancy of lung nodules", n_dims=3
    ),
    "adrenal3d": Facts(
        "adrenalmnist3d",
        2,
        "shape from abdominal CT",
        "adrenal-shape",
        "adrenal gland shapes, normal or hyperplastic",
        n_dims=3,
    ),
    "fracture3d": Facts(
        "fracturemnist3d", 3, "chest CT", "rib-fracture-ct", "types of rib fracture", n_dims=3
    ),
    "vessel3d": Facts(
        "vesselmnist3d",
        2,
        "shape from brain MR angiography",
        "brain-vessel-shape",
        "aneurysms of brain vessels",
        n_dims=3,
    ),
    "synapse3d": Facts(
        "synapsemnist3d",
        2,
        "electron microscopy",
        "synapse-electron-microscopy",
        "excitatory and inhibitory synapses",
        n_dims=3,
    ),
}
