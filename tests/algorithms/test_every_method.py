"""What holds for every bundled method, whatever it computes: the contract, checked on each spec.

A method is trained for a few steps on striped images, prepared with what it learned, and given
episodes of such images in the form it works on. Expected exceptions carry their reason.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from medbench.api import Algorithm, AlgorithmSpec, Backbone, Support, derive_seed
from medbench.multilabel import BinaryRelevance
from medbench_algorithms import medbench_algorithms

from .conftest import FakeRun, SmallConv, StripesSource, small_vit, stripes

# Those that do not learn from a support set have tests of their own.
SPECS = {
    spec.name: spec
    for spec in medbench_algorithms()
    if "classification" in spec.traits.task_kinds and spec.traits.uses_support
}
N_WAY, N_EPISODES, N_QUERY = 3, 4, 9
SHOTS = (3, 1, 2)

# Values other than the defaults that deserve the same checks.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "protonet": {"cosine": {"distance": "cosine", "temperature": 0.1}},
    "simpleshot": {"none": {"normalize": "none"}, "l2": {"normalize": "l2"}},
    "nearest-neighbour": {"cosine": {"metric": "cosine"}, "3": {"k": 3}, "99": {"k": 99}},
    "linear-probe": {"l2": {"normalize": "l2", "C": 10.0}},
    "matching-networks": {
        "fce": {"fce": True},
        "fce2": {"fce": True, "fce_steps": 2},
        "100": {"scale": 100.0},
    },
    "nearest-centroid": {"cosine": {"distance": "cosine"}},
    "dsn": {"1": {"subspace_dim": 1, "temperature": 3.0}},
    "simple-cnaps": {"beta": {"beta": 0.01}},
    "metaoptnet": {"ridge": {"head": "ridge"}},
    "r2d2": {"logistic": {"head": "logistic"}},
    "full-fine-tuning": {"prototype": {"head": "prototype"}},
    "lora": {"qkvo": {"target": "qkvo"}},
    "adapters": {"adaptformer": {"kind": "adaptformer"}},
    "deepemd": {"sinkhorn": {"solver": "sinkhorn"}},
    "deepbdc": {"reduced": {"reduce_dim": 4}},
    "frn": {"rescale": {"rescale": True}},
    "rfs": {"plain": {"generations": 0}},
    "mixup-support": {"cutmix": {"mix": "cutmix"}},
    **{
        name: {"support": {"batch_norm": "support", "head": "shared"}}
        for name in ("maml", "fomaml", "anil", "meta-sgd", "maml-plus-plus", "imaml")
    },
    **{name: {"support": {"batch_norm": "support"}} for name in ("boil", "cavia", "reptile")},
    "protomaml": {"query": {"batch_norm": "query"}},
    "tim": {"adm": {"solver": "adm"}},
    "laplacian-shot": {"unshifted": {"rectify": False}},
    "gaussian-mixture": {"diag": {"covariance": "diag", "shared": False}},
    "label-propagation": {"cosine": {"kernel": "cosine", "neighbours": 5}},
    "pt-map": {"sign": {"negatives": "sign"}},
}
# Steps of training, where six are too few to tell classes apart at all.
STEPS = {"relation-network": 40, "versa": 120, "tpn": 40, "cavia": 80}
# What stands for the paper's values here: short trainings want larger rates, and fewer steps of
# a network keep this file quick.
_FEW = {"tune_epochs": 8}
_TUNED = (
    "lora",
    "adapters",
    "full-fine-tuning",
    "last-block-fine-tuning",
    "bias-tuning",
    "norm-tuning",
)
QUICK: dict[str, dict[str, Any]] = {
    "versa": {"lr": 3e-3, "width": 32},
    "cavia": {"meta_lr": 0.01, "meta_batch": 2},
    "reptile": {"inner_steps_test": 10},
    "tsa": {"steps": 8},
    "tim": {"steps": 150},
    "alpha-tim": {"steps": 150},
    "distribution-calibration": {"n_sampled": 150},
    "imaml": {"inner_steps": 8, "inner_steps_test": 8},
    "s2m2": {"head_epochs": 100},
    **dict.fromkeys(_TUNED, _FEW),
}
# Why scores may depend on which class has which number.
_ROWS = "starts from random rows, one a class"
_POSITIONS = "learns a start for every class position"
NUMBERED_CLASSES: dict[str, str] = {
    "baseline": _ROWS,
    "baseline-plus-plus": _ROWS,
    "negative-margin": _ROWS,
    "s2m2": _ROWS,
    "feature-hallucination": "draws transformations class by class",
    "maml": _POSITIONS,
    "fomaml": _POSITIONS,
    "anil": _POSITIONS,
    "boil": _POSITIONS,
    "reptile": _POSITIONS,
    "meta-sgd": _POSITIONS,
    "maml-plus-plus": _POSITIONS,
    "imaml": _POSITIONS,
    "cavia": _POSITIONS,
    **{f"{name}+support": _POSITIONS for name in ("boil", "cavia", "reptile")},
}
# Why scores may depend on the order of the support set.
_BY_POSITION = "draws by position in the support set"
_IN_ORDER = "its LSTM reads the support set in order"
ORDERED_SUPPORT: dict[str, str] = {
    "baseline": _BY_POSITION,
    "baseline-plus-plus": _BY_POSITION,
    "negative-margin": _BY_POSITION,
    "s2m2": _BY_POSITION,
    "feature-hallucination": _BY_POSITION,
    "distribution-calibration": _BY_POSITION,
    "mixup-support": _BY_POSITION,
    "mixup-support+cutmix": _BY_POSITION,
    "support-augmentation": _BY_POSITION,
    "reptile": _BY_POSITION,
    "reptile+support": _BY_POSITION,
    "matching-networks+fce": _IN_ORDER,
    "matching-networks+fce2": _IN_ORDER,
}
BACKBONES: dict[str, Callable[[], Backbone]] = {"lora": small_vit, "adapters": small_vit}


@dataclass(frozen=True)
class Ready:
    """A method after a short training, and the network it was prepared with."""

    spec: AlgorithmSpec
    params: dict[str, Any]
    algorithm: Algorithm
    backbone: Backbone

    @property
    def transductive(self) -> bool:
        return self.spec.traits.is_transductive(self.params)


def load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def ready(case: str) -> Ready:
    name, _, variant = case.partition("+")
    spec = SPECS[name]
    given = QUICK.get(name, {}) | (VARIANTS[name][variant] if variant else {})
    assert given.keys() <= {p.name for p in spec.parameters}
    params = {p.name: given.get(p.name, p.default) for p in spec.parameters}
    stages = {p.name: p.stage for p in spec.parameters}
    apart = spec.trainer is not None
    torch.manual_seed(0)
    backbone = BACKBONES.get(name, SmallConv)()
    algorithm: Algorithm = load(spec.factory)(
        **{k: v for k, v in params.items() if not (apart and stages[k] == "train")}
    )
    learned: dict[str, Tensor] = {}
    if spec.traits.meta_trains:
        trainer = algorithm
        if spec.trainer:
            trainer = load(spec.trainer)(
                **{k: v for k, v in params.items() if stages[k] != "adapt"}
            )
        source = StripesSource(way=N_WAY)
        n = STEPS.get(name, 6)
        run = FakeRun(source, n, images=n * source.images_per_task)
        learned = trainer.meta_train(copy.deepcopy(backbone), source, run)
    own = {k[9:]: v for k, v in learned.items() if k.startswith("backbone.")}
    if own:
        backbone.load_state_dict(own)
    algorithm.prepare(
        backbone.eval(), {k: v for k, v in learned.items() if not k.startswith("backbone.")}
    )
    return Ready(spec, params, algorithm, backbone)


CASES = [
    case
    for name in SPECS
    for case in (name, *(f"{name}+{variant}" for variant in VARIANTS.get(name, {})))
]
BATCHED = [c for c in CASES if SPECS[c.partition("+")[0]].traits.batched]
every = pytest.mark.parametrize("case", CASES)
batched = pytest.mark.parametrize("case", BATCHED)


@cache
def images_of_episodes(
    shots: tuple[int, ...] = SHOTS, n_query: int = N_QUERY, count: int = N_EPISODES
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support images, labels, query images and labels; labels in random order, unequal shots."""
    generator = torch.Generator().manual_seed(derive_seed("episodes", shots, n_query, count))
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(count):
        classes = torch.randperm(8, generator=generator)[: len(shots)]
        labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        asked = torch.arange(n_query) % len(shots)
        support = stripes(classes[labels], generator, noise=0.1)
        query = stripes(classes[asked], generator, noise=0.1)
        parts.append((support, labels, query, asked))
    support, labels, query, asked = (torch.stack(p) for p in zip(*parts, strict=True))
    return support, labels, query, asked


def as_seen(one: Ready, images: Tensor) -> Tensor:
    """Images ``(e, n, C, H, W)`` in the form that the method works on."""
    works_on = one.spec.traits.works_on
    if works_on == "images":
        return images
    with torch.no_grad():
        flat = images.flatten(0, 1)
        found = one.backbone(flat) if works_on == "features" else one.backbone.feature_map(flat)
    return found.unflatten(0, images.shape[:2])


def episodes(one: Ready, **shape: Any) -> tuple[Support, Tensor, Tensor]:
    support, labels, query, asked = images_of_episodes(**shape)
    seeds = tuple(range(100, 100 + len(labels)))
    inputs = as_seen(one, support)
    return Support(inputs, labels, int(labels.max()) + 1, seeds), as_seen(one, query), asked


def single(support: Support, i: int) -> Support:
    return Support(support.inputs[i], support.labels[i], support.n_way, (support.seeds[i],))


def scores_of(one: Ready, support: Support, query: Tensor) -> Tensor:
    """Scores of all episodes, in one call where the method takes batches."""
    if one.spec.traits.batched:
        return one.algorithm.adapt(support).predict(query).detach()
    return torch.stack(
        [
            one.algorithm.adapt(single(support, i)).predict(query[i]).detach()
            for i in range(len(query))
        ]
    )


def assert_alike(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal to `tolerance` of the range of the scores: what rounding may do to them."""
    scale = float((expected.max() - expected.min()).clamp_min(1e-6))
    assert float((found - expected).abs().max()) <= tolerance * scale


def assert_nearly_alike(found: Tensor, expected: Tensor) -> None:
    """Equal to a thousandth of the range of the scores; in one of the episodes to a fiftieth.

    Another order of additions may carry a step of an inner loop over the kink of a ReLU, or to
    another winner of a max-pooling; and processors add in different orders.
    """
    scale = float((expected.max() - expected.min()).clamp_min(1e-6))
    off = ((found - expected).abs().flatten(1).amax(dim=1) / scale).sort().values
    assert float(off[-2]) <= 1e-3
    assert float(off[-1]) <= 2e-2


# --- shapes and values ---------------------------------------------------------------------------


@every
def test_scores_are_finite_and_of_the_promised_shape_and_kind(case: str) -> None:
    one = ready(case)
    for shots in (SHOTS, (1, 1), (1, 1, 1), (5, 5)):
        support, query, _ = episodes(one, shots=shots)
        scores = scores_of(one, support, query)
        assert scores.shape == (N_EPISODES, N_QUERY, len(shots))
        assert scores.dtype == query.dtype
        assert torch.isfinite(scores).all()


@every
def test_one_query_is_enough(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    scores = scores_of(one, support, query[:, :1])
    assert scores.shape == (N_EPISODES, 1, N_WAY)
    assert torch.isfinite(scores).all()


@every
def test_the_count_of_adapted_parameters_is_for_one_episode(case: str) -> None:
    one = ready(case)
    support, _, _ = episodes(one)
    alone = one.algorithm.adapt(single(support, 0))
    assert isinstance(alone.n_adapted, int)
    assert alone.n_adapted >= 0
    assert (alone.n_adapted > 0) == (one.spec.traits.adapts != "nothing")
    if one.spec.traits.batched:
        assert one.algorithm.adapt(support).n_adapted == alone.n_adapted


@every
def test_queries_are_told_apart_and_with_shuffled_labels_they_are_not(case: str) -> None:
    one = ready(case)
    support, query, asked = episodes(one, shots=(5, 5, 5), count=16)
    right = (scores_of(one, support, query).argmax(-1) == asked).float().mean()
    assert right > 0.5  # chance is a third; 144 queries
    generator = torch.Generator().manual_seed(5)
    order = torch.stack([torch.randperm(15, generator=generator) for _ in range(16)])
    shuffled = replace(support, labels=support.labels.gather(1, order))
    wrong = (scores_of(one, shuffled, query).argmax(-1) == asked).float().mean()
    assert wrong < 0.5


@pytest.mark.parametrize(
    "case", [c for c in CASES if SPECS[c.partition("+")[0]].traits.works_on != "images"]
)
def test_degenerate_features_give_finite_scores(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    for inputs, asked in (
        (torch.zeros_like(support.inputs), torch.zeros_like(query)),
        (torch.ones_like(support.inputs), torch.ones_like(query)),
        (support.inputs * 1e3, query * 1e3),
        (-support.inputs, -query),
    ):
        scores = scores_of(one, replace(support, inputs=inputs), asked)
        assert torch.isfinite(scores).all()


@batched
def test_precision_of_inputs_is_kept_in_the_scores(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    wide = replace(support, inputs=support.inputs.double())
    scores = scores_of(one, wide, query.double())
    assert scores.dtype == torch.float64
    assert_alike(scores.float(), scores_of(one, support, query), 2e-2)


# --- batches -------------------------------------------------------------------------------------


@batched
def test_a_batch_of_episodes_equals_one_by_one(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    together = scores_of(one, support, query)
    for i in range(N_EPISODES):
        alone = one.algorithm.adapt(single(support, i)).predict(query[i]).detach()
        assert_alike(together[i], alone)


@batched
def test_two_leading_dimensions_are_a_batch_too(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    folded = replace(
        support,
        inputs=support.inputs.unflatten(0, (2, 2)),
        labels=support.labels.unflatten(0, (2, 2)),
    )
    again = scores_of(one, folded, query.unflatten(0, (2, 2)))
    assert_alike(again.flatten(0, 1), scores_of(one, support, query))


# --- what scores may depend on -------------------------------------------------------------------


@every
def test_a_query_alone_gets_its_scores_in_company_unless_declared_transductive(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    predictor = one.algorithm.adapt(single(support, 0))
    together = predictor.predict(query[0]).detach()
    alone = torch.cat([predictor.predict(q.unsqueeze(0)).detach() for q in query[0]])
    if one.transductive:
        assert not torch.allclose(alone, together, rtol=1e-6, atol=1e-8)
    else:
        assert_alike(alone, together)


def change_by_renaming(case: str) -> tuple[Tensor, Tensor]:
    """Scores with the classes renamed, put back in order, and the scores as they were."""
    one = ready(case)
    support, query, _ = episodes(one)
    renamed = torch.tensor([2, 0, 1])
    permuted = scores_of(one, replace(support, labels=renamed[support.labels]), query)
    return permuted[..., renamed], scores_of(one, support, query)


def change_by_reordering(case: str) -> tuple[Tensor, Tensor]:
    """Scores with the support set in another order, and as they were."""
    one = ready(case)
    support, query, _ = episodes(one)
    order = torch.randperm(support.labels.shape[-1], generator=torch.Generator().manual_seed(1))
    shuffled = replace(support, inputs=support.inputs[:, order], labels=support.labels[:, order])
    return scores_of(one, shuffled, query), scores_of(one, support, query)


@pytest.mark.parametrize("case", [c for c in CASES if c not in NUMBERED_CLASSES])
def test_permuting_classes_permutes_scores(case: str) -> None:
    assert_nearly_alike(*change_by_renaming(case))


@pytest.mark.parametrize("case", [c for c in CASES if c not in ORDERED_SUPPORT])
def test_permuting_the_support_set_changes_nothing(case: str) -> None:
    assert_nearly_alike(*change_by_reordering(case))


@pytest.mark.parametrize("case", NUMBERED_CLASSES)
def test_what_is_excused_from_renaming_does_depend_on_it(case: str) -> None:
    with pytest.raises(AssertionError):
        assert_nearly_alike(*change_by_renaming(case))


@pytest.mark.parametrize("case", ORDERED_SUPPORT)
def test_what_is_excused_from_reordering_does_depend_on_it(case: str) -> None:
    with pytest.raises(AssertionError):
        assert_nearly_alike(*change_by_reordering(case))


@every
def test_predicting_and_adapting_twice_gives_the_same(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    predictor = one.algorithm.adapt(single(support, 0))
    first = predictor.predict(query[0]).detach()
    torch.rand(3)  # torch's global state must not matter
    assert torch.equal(predictor.predict(query[0]).detach(), first)
    one.algorithm.adapt(single(support, 1)).predict(query[1])  # nor what came between
    assert torch.equal(one.algorithm.adapt(single(support, 0)).predict(query[0]).detach(), first)


@every
def test_nothing_given_is_changed_and_nothing_of_an_episode_is_kept(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    alone, asked = single(support, 0), query[0]
    kept = [t.clone() for t in (alone.inputs, alone.labels, asked)]
    weights = {k: v.clone() for k, v in one.backbone.state_dict().items()}
    modes = [m.training for m in one.backbone.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one.backbone.modules()]
    random, fields = torch.get_rng_state(), set(vars(one.algorithm))
    one.algorithm.adapt(alone).predict(asked)
    for before, now in zip(kept, (alone.inputs, alone.labels, asked), strict=True):
        assert torch.equal(before, now)
    for name, value in one.backbone.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert [m.training for m in one.backbone.modules()] == modes
    assert hooks == [
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one.backbone.modules()
    ]
    assert all(p.grad is None for p in one.backbone.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert set(vars(one.algorithm)) == fields


@every
def test_methods_work_in_inference_mode_and_without_gradients(case: str) -> None:
    one = ready(case)
    support, query, _ = episodes(one)
    alone = single(support, 0)
    expected = one.algorithm.adapt(alone).predict(query[0]).detach()
    with torch.inference_mode():
        inside = replace(alone, inputs=alone.inputs.clone(), labels=alone.labels.clone())
        assert_alike(one.algorithm.adapt(inside).predict(query[0].clone()), expected, 1e-6)
    with torch.no_grad():
        assert_alike(one.algorithm.adapt(alone).predict(query[0]), expected, 1e-6)


@pytest.mark.parametrize("name", [n for n in SPECS if "multilabel" in SPECS[n].traits.task_kinds])
def test_methods_that_declare_several_labels_are_asked_about_each(name: str) -> None:
    one = ready(name)
    support, query, _ = episodes(one, shots=(3, 3, 3), count=1)
    classes = support.labels[0]
    findings = torch.stack([classes == 0, classes != 1, classes == 2], dim=-1).long()
    dims = 1 if one.spec.traits.works_on == "features" else 3
    method = BinaryRelevance(one.algorithm, batched=one.spec.traits.batched, image_dims=dims)
    scores = method.adapt(Support(support.inputs[0], findings, 3, (5,))).predict(query[0])
    assert scores.shape == (N_QUERY, 3)
    assert torch.isfinite(scores).all()
