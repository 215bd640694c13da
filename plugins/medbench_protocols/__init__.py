"""The bundled protocols: the YAML files beside this module."""

from __future__ import annotations

from medbench.api import ProtocolSpec, hookimpl

_SUMMARIES = {
    "synthetic-classes": "Made-up blood cells, unseen cell types; offline",
    "synthetic-cross": "Made-up images, one imaging domain held out; offline",
    "synthetic-sites": "Made-up blood cells, one laboratory held out; offline",
    "synthetic-patients": "Made-up blood cells, adapt to one patient by earlier images; offline",
    "synthetic-patients-others": "synthetic-patients, but with support of other patients; offline",
    "synthetic-sites-masks": "Made-up blood cells, masks, one laboratory held out; offline",
    "synthetic-sites-boxes": "Made-up lesions, boxes, one hospital held out; offline",
    "synthetic-findings": "Made-up radiographs, several findings an image (multilabel); offline",
    "omniglot-5w1s": "Omniglot, 5-way 1-shot, unseen characters (Vinyals split)",
    "omniglot-5w5s": "Omniglot, 5-way 5-shot, unseen characters (Vinyals split)",
    "omniglot-20w1s": "Omniglot, 20-way 1-shot, unseen characters (Vinyals split)",
    "omniglot-20w5s": "Omniglot, 20-way 5-shot, unseen characters (Vinyals split)",
    "synthetic-segmentation": "Made-up cells and lesions, masks from a few marked images; offline",
    "nuclei-segmentation": "Nuclei in fluorescence and stained tissue, masks from a few images",
    "synthetic-detection": "Made-up lesions, boxes from a few marked images; offline",
    "bccd-detection": "Blood cells and platelets, boxes from a few marked smears",
    "medmnist-cross": "MedMNIST 2-D sets, one held-out dataset at a time",
    "medmnist-findings": "ChestMNIST, 14 findings (multilabel), meta-train on other domains",
    "synthetic-volumes": "Made-up vessels in volumes, unseen pairs of twist and form; offline",
    "synthetic-volume-masks": "Made-up vessels in volumes, masks of a new kind of vessel; offline",
    "synthetic-modalities": "Made-up lesions in CT and MRI: both, each alone, one missing; offline",
    "medmnist3d-cross": "MedMNIST 3-D sets (volumes), one held-out dataset at a time",
    "chest-sites": "Lungs in chest radiographs, boxes, one country held out",
    "chest-views": "Views of chest radiographs (behind, front, lying), one country held out",
    "chest-patients": "Lungs in a patient's later chest radiographs, boxes from an earlier one",
    "wbc-sites": "White blood cells, one held-out laboratory at a time",
}


@hookimpl
def medbench_protocols() -> list[ProtocolSpec]:
    """The protocols this plugin brings, as YAML files inside its package."""
    return [
        ProtocolSpec(
            name=name, version=1, summary=summary, resource=f"medbench_protocols:{name}.yaml"
        )
        for name, summary in _SUMMARIES.items()
    ]
