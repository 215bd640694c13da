"""What `medbench check` has to know of the bundled algorithms: excuses with their reasons."""

from __future__ import annotations

from dataclasses import replace

from medbench.api import AlgorithmSpec, Conformance, Excuse

_LEARNED_POSITIONS = "learns a start for every class position"
_LEARNED_WAYS = "learns a start for as many class positions as its training tasks had"
_BY_POSITION = "draws by position in the support set"
_IN_ORDER = "its LSTM reads the support set in order"
_ROWS = (
    Excuse("label-permutation", "starts from random rows, one a class"),
    Excuse("support-order", _BY_POSITION),
)
_BY_HEAD = {"head": ("auto", "per_class")}
_POSITIONS = (
    Excuse("label-permutation", _LEARNED_POSITIONS),
    Excuse("all-classes", _LEARNED_WAYS),
)
_POSITIONS_BY_HEAD = tuple(replace(excuse, when=_BY_HEAD) for excuse in _POSITIONS)
# A network small enough to be checked within seconds, and made of the blocks that they change.
_SMALL_VIT = Conformance(
    backbone="timm:test_vit",
    backbone_params={"input_size": 32},
    image_size=32,
    params={"tune_epochs": 8},
)

CONFORMANCE: dict[str, Conformance] = {
    **{
        name: Conformance(excuses=_ROWS)
        for name in ("baseline", "baseline-plus-plus", "negative-margin", "s2m2")
    },
    **{
        name: Conformance(excuses=_POSITIONS_BY_HEAD)
        for name in ("maml", "fomaml", "anil", "meta-sgd", "maml-plus-plus", "imaml")
    },
    "boil": Conformance(excuses=_POSITIONS),
    "cavia": Conformance(excuses=_POSITIONS),
    "reptile": Conformance(excuses=(*_POSITIONS, Excuse("support-order", _BY_POSITION))),
    "feature-hallucination": Conformance(
        excuses=(
            Excuse("label-permutation", "draws transformations class by class"),
            Excuse("support-order", _BY_POSITION),
        )
    ),
    **{
        name: Conformance(excuses=(Excuse("support-order", _BY_POSITION),))
        for name in ("distribution-calibration", "mixup-support", "support-augmentation")
    },
    "matching-networks": Conformance(
        excuses=(Excuse("support-order", _IN_ORDER, {"fce": (True,)}),)
    ),
    # Trained anew in every task.
    "unet-scratch": Conformance(params={"steps": 40}, excuses=_ROWS),
    "fcos-scratch": Conformance(params={"steps": 100}, excuses=_ROWS),
    # Smaller, or of fewer and larger steps, so that they are checked within a minute or two.
    "universeg": Conformance(params={"width": 8, "levels": 2}),
    "maml-unet": Conformance(
        params={"inner_steps": 2, "inner_steps_test": 3, "inner_lr": 0.1, "meta_lr": 3e-3}
    ),
    "source-only-unet": Conformance(params={"lr": 0.02, "meta_batch": 1}),
    "source-only-fcos": Conformance(params={"lr": 0.01, "meta_batch": 1}),
    "prototype-boxes": Conformance(
        excuses=(Excuse("label-permutation", "thins out windows in the order of classes"),)
    ),
    "lora": _SMALL_VIT,
    "adapters": _SMALL_VIT,
}


def with_conformance(spec: AlgorithmSpec) -> AlgorithmSpec:
    """The spec, with what is told here of it."""
    return replace(spec, conformance=CONFORMANCE.get(spec.name, spec.conformance))
