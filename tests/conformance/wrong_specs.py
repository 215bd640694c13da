"""Plugins that are wrong on purpose, one for each check, as specs: no torch is imported here."""

from __future__ import annotations

from dataclasses import replace

from medbench.api import (
    AlgorithmSpec,
    BackboneSpec,
    Citation,
    Conformance,
    DatasetSpec,
    Excuse,
    Parameter,
    ProtocolSpec,
    Traits,
    hookimpl,
)

CITATION = Citation(title="Wrong on purpose", authors="N. N.", venue="Tests", year=2026)


def _algorithm(check: str, factory: str, *, excuses: tuple[Excuse, ...] = (), **traits):
    traits = {"works_on": "features", "adapts": "nothing"} | traits
    return AlgorithmSpec(
        name=f"wrong/{check}-{factory.lower()}",
        version="1",
        factory=f"wrong_algorithms:{factory}",
        summary="Wrong on purpose",
        traits=Traits(**traits),
        citation=CITATION,
        licence="CC0-1.0",
        conformance=Conformance(excuses=excuses),
    )


# The one check that each must fail, and nothing else.
ALGORITHMS = {
    "factory": [
        replace(
            _algorithm("factory", "Choosy"),
            parameters=(
                Parameter("distance", "l2", "how", "str", choices=("l2", "l1"), stage="adapt"),
            ),
        ),
        replace(
            _algorithm("factory", "Mean"),
            parameters=(Parameter("k", 1, "never taken", "int", stage="adapt"),),
        ),
        _algorithm("factory", "make_nothing"),
    ],
    "meta-train": [
        _algorithm("meta-train", "SecretTraining"),
        _algorithm("meta-train", "Mean", meta_trains=True),
        _algorithm("meta-train", "LearnsNothing", meta_trains=True),
        _algorithm("meta-train", "ForgetsToLog", meta_trains=True),
    ],
    "shapes": [
        _algorithm("shapes", "Transposed"),
        _algorithm("shapes", "NoPredictor"),
        _algorithm("shapes", "Whole"),
        _algorithm("shapes", "Crashes"),
    ],
    "finite": [_algorithm("finite", "ZeroByZero")],
    "alike-images": [_algorithm("alike-images", "Cosine")],
    "one-shot": [_algorithm("one-shot", "PooledVariance")],
    "two-way": [_algorithm("two-way", "Binary")],
    "unequal-shots": [_algorithm("unequal-shots", "Reshapes")],
    "one-query": [_algorithm("one-query", "Squeezes")],
    "all-classes": [_algorithm("all-classes", "AtMostFive")],
    "adapted-count": [
        _algorithm("adapted-count", "Counts"),
        _algorithm("adapted-count", "Mean", adapts="linear head"),
    ],
    "deterministic": [_algorithm("deterministic", "TrueRandom")],
    "random-state": [_algorithm("random-state", "GlobalRandom")],
    "same-seed": [_algorithm("same-seed", "UnseededTraining", meta_trains=True)],
    "predict-twice": [_algorithm("predict-twice", "CountsCalls")],
    "episodes-apart": [_algorithm("episodes-apart", "Remembers")],
    "label-permutation": [_algorithm("label-permutation", "PrefersFirst")],
    "support-order": [_algorithm("support-order", "LastImageWins")],
    "support-unused": [_algorithm("support-unused", "Mean", uses_support=False)],
    "query-alone": [
        _algorithm("query-alone", "Centres"),
        _algorithm("query-alone", "Mean", transductive=True),
    ],
    "batched": [
        _algorithm("batched", "ScalesByAll", batched=True),
        _algorithm("batched", "CountsAll", batched=True, adapts="class centres"),
        _algorithm("batched", "OneEpisode", batched=True),
    ],
    "other-process": [_algorithm("other-process", "KeepsInModule", meta_trains=True)],
    "above-chance": [
        _algorithm("above-chance", "Guesses"),
        _algorithm("above-chance", "Upside"),
    ],
    "shuffled-labels": [
        _algorithm(
            "shuffled-labels",
            "ReadsOrder",
            transductive=True,
            excuses=(Excuse("label-permutation", "counts queries off by class number"),),
        )
    ],
    "support-untouched": [_algorithm("support-untouched", "InPlace")],
    "backbone-untouched": [
        _algorithm("backbone-untouched", "MovesStatistics", works_on="images"),
        _algorithm("backbone-untouched", "LeavesHook", works_on="images"),
    ],
    "query-labels": [
        _algorithm("query-labels", "WalksFrames"),
        _algorithm("query-labels", "WalksTraceback"),
        _algorithm("query-labels", "AsksInspect"),
        _algorithm("query-labels", "FindsDataset"),
    ],
    "no-network": [_algorithm("no-network", "CallsHome")],
    "no-writing": [_algorithm("no-writing", "Logs"), _algorithm("no-writing", "SavesQuietly")],
    "spec": [
        replace(_algorithm("spec", "Mean"), licence="unknown"),
        replace(_algorithm("spec", "Mean"), citation=replace(CITATION, authors="")),
        replace(_algorithm("spec", "Mean"), name="nearest-mean-without-prefix"),
    ],
    "api-only": [replace(_algorithm("api-only", "Mean"), factory="wrong_reaching:Mean")],
}


def _backbone(check: str, factory: str) -> BackboneSpec:
    return BackboneSpec(
        name=f"wrong/{check}-{factory.lower()}",
        version="1",
        factory=f"wrong_backbones:{factory}",
        summary="Wrong on purpose",
        citation=CITATION,
        licence="CC0-1.0",
    )


BACKBONES = {
    "factory": [_backbone("factory", "GreyOnly"), _backbone("factory", "no_backbone")],
    "input": [_backbone("input", "OneMean"), _backbone("input", "ZeroStd")],
    "feature-dimension": [
        _backbone("feature-dimension", "OffByOne"),
        _backbone("feature-dimension", "Double"),
    ],
    "feature-map": [_backbone("feature-map", "FlatMap")],
    "finite": [_backbone("finite", "Divides")],
    "eval-mode": [_backbone("eval-mode", "BatchStatistics"), _backbone("eval-mode", "Counts")],
    "weights-digest": [
        _backbone("weights-digest", "OwnSeed"),
        _backbone("weights-digest", "NoSeed"),
    ],
    "trainable": [_backbone("trainable", "Detached")],
    "deployed": [
        _backbone("deployed", "ShorterWhenTested"),
        _backbone("deployed", "BatchScale"),
        _backbone("deployed", "SmallerMapWhenTested"),
    ],
    "random-state": [_backbone("random-state", "Draws")],
    "pretrained": [_backbone("pretrained", "IgnoresPretrained")],
    "no-network": [_backbone("no-network", "CallsHome")],
    "no-writing": [_backbone("no-writing", "Caches")],
    "modalities": [
        replace(
            _backbone("modalities", "IgnoresMissing"),
            takes_argument="BACKBONE",
            wraps=(2,),
            n_dims=None,
            fuses=True,
        )
    ],
    "spec": [replace(_backbone("spec", "Tiny"), summary="TODO")],
}


def _dataset(check: str, factory: str, **fields) -> DatasetSpec:
    return DatasetSpec(
        name=f"wrong/{check}-{factory.lower()}",
        version="1",
        factory=f"wrong_datasets:{factory}",
        summary="Wrong on purpose",
        modality="made up",
        domain="wrong",
        licence="CC0-1.0",
        citation=CITATION,
        **fields,
    )


def _masks(factory: str) -> DatasetSpec:
    return _dataset("targets", factory, task_kind="segmentation")


def _boxes(factory: str) -> DatasetSpec:
    return _dataset("targets", factory, task_kind="detection")


DATASETS = {
    "opens": [
        _dataset("opens", "NotThere"),
        _dataset("opens", "WrongError"),
        _dataset("opens", "no_dataset"),
    ],
    "licence": [replace(_dataset("licence", "NonCommercial"), licence="CC BY-NC 4.0")],
    "info": [_dataset("info", "OtherDomain"), _dataset("info", "Right", n_classes=7)],
    "modalities": [_dataset("modalities", "OneTooMany"), _dataset("modalities", "Nameless")],
    "labels": [_dataset("labels", "FromOne"), _dataset("labels", "Floats")],
    "splits": [
        _dataset("splits", "Overlap"),
        _dataset("splits", "FourSplits"),
        _dataset("splits", "NoTest"),
    ],
    "patients": [_dataset("patients", "SplitByImage")],
    "sites": [_dataset("sites", "UnknownSite"), _dataset("sites", "NamesAlone")],
    "images": [
        _dataset("images", "Sorts"),
        _dataset("images", "FloatPixels"),
        _dataset("images", "Augments"),
    ],
    "random-state": [_dataset("random-state", "Seeds")],
    "digest": [
        _dataset("digest", "Clock"),
        _dataset("digest", "Process"),
        _dataset("digest", "Word"),
    ],
    "read-only": [_dataset("read-only", "Relabels")],
    "no-network": [_dataset("no-network", "Downloads")],
    "no-writing": [_dataset("no-writing", "WritesBeside")],
    "targets": [
        *(_masks(name) for name in ("ForgetsMasks", "ClassesLast", "SortsMasks")),
        *(_masks(name) for name in ("MoreMasks", "OneSpacing")),
        *(_boxes(name) for name in ("BeforeResizing", "WidthAndHeight", "BoxesFromOne")),
        *(_boxes(name) for name in ("OtherBoxes", "OnlyArrays")),
    ],
    "spec": [replace(_dataset("spec", "Right"), summary="TODO")],
}


def _protocol(check: str, file: str, version: int = 1) -> ProtocolSpec:
    return ProtocolSpec(
        name=f"wrong/{file}",
        version=version,
        summary="Wrong on purpose",
        resource=f"wrong_protocols:{file}.yaml",
    )


PROTOCOLS = {
    "file": [_protocol("file", "right", version=2), _protocol("file", "unknown-key")],
    "datasets": [_protocol("datasets", "unknown-dataset"), _protocol("datasets", "wrong-param")],
    "targets": [_protocol("targets", "too-many-shots"), _protocol("targets", "one-domain")],
    "episodes": [_protocol("episodes", "all-images")],
    "spec": [replace(_protocol("spec", "right"), summary="?")],
}


def _marks(kind: str, check: str, factory: str, **traits) -> AlgorithmSpec:
    traits = {"works_on": "maps", "task_kinds": (kind,)} | traits
    return replace(_algorithm(check, factory, **traits), factory=f"wrong_marks:{factory}")


def _each(kind: str, **factories: tuple[str, ...]) -> dict[str, list[AlgorithmSpec]]:
    names = {check.replace("_", "-"): factories for check, factories in factories.items()}
    return {check: [_marks(kind, check, f) for f in found] for check, found in names.items()}


MASKS = _each(
    "segmentation",
    shapes=("AsLargeAsTheMap", "Binary", "ClassesLast", "Windows"),
    finite=("Infinite",),
    alike_images=("Standardises",),
    one_shot=("PooledVariance",),
    two_way=("OneColumnForTwo",),
    unequal_shots=("Reshapes",),
    one_query=("Squeezes",),
    all_classes=("AtMostFive",),
    adapted_count=("CountsAdapted",),
    deterministic=("TrueRandom",),
    random_state=("GlobalRandom",),
    predict_twice=("CountsCalls",),
    episodes_apart=("Remembers",),
    label_permutation=("PrefersFirst",),
    support_order=("LastImageWins",),
    query_alone=("AmongOthers",),
    above_chance=("Nothing", "Everything", "Upside"),
    support_untouched=("FillsMasks",),
    query_labels=("WalksFrames", "FindsDataset"),
) | {
    "batched": [_marks("segmentation", "batched", "BatchedByMistake", batched=True)],
    "shuffled-labels": [
        _marks(
            "segmentation",
            "shuffled-labels",
            "ReadsOrder",
            transductive=True,
            excuses=(Excuse("label-permutation", "counts queries off by class number"),),
        )
    ],
    "backbone-untouched": [
        _marks("segmentation", "backbone-untouched", "MovesStatistics", works_on="images")
    ],
}
BOXES = _each(
    "detection",
    shapes=("AsTensors", "OneForAll", "FromOne", "RowsFirst", "NoDetector"),
    finite=("NotANumber",),
    one_shot=("PooledSpread",),
    one_query=("FirstAlone",),
    deterministic=("NoisyScores",),
    random_state=("GlobalBoxes",),
    predict_twice=("CountsBoxCalls",),
    episodes_apart=("RemembersBoxes",),
    label_permutation=("FirstIsLikelier",),
    support_order=("LastBoxWins",),
    query_alone=("BestOfAllQueries",),
    above_chance=("Shares", "InPlaces", "WorstFirst", "Silent"),
    support_untouched=("ScalesBoxes",),
    query_labels=("KnowsBoxes",),
) | {
    "batched": [_marks("detection", "batched", "Windows", batched=True)],
    "shuffled-labels": [
        _marks(
            "detection",
            "shuffled-labels",
            "BoxesByOrder",
            transductive=True,
            excuses=(Excuse("label-permutation", "counts queries off by class number"),),
        )
    ],
}
MARKS = {"segmentation": MASKS, "detection": BOXES}
RIGHT_MARKS = {
    "segmentation": _marks("segmentation", "right", "Places"),
    "detection": _marks("detection", "right", "Windows"),
}
WRONG = {
    "algorithms": ALGORITHMS,
    "backbones": BACKBONES,
    "datasets": DATASETS,
    "protocols": PROTOCOLS,
}
RIGHT = {
    "algorithms": _algorithm("right", "Mean", batched=True),
    "backbones": _backbone("right", "Tiny"),
    "datasets": _dataset("right", "Right"),
    "protocols": _protocol("right", "right"),
}


@hookimpl
def medbench_datasets():
    return [_dataset("right", "Right")]
