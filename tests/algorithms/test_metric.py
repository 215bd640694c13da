"""Metric methods against values computed apart from them: loops, dense algebra, other code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestCentroid as SklearnCentroid
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import ContractError, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.metric import relation_network
from medbench_algorithms.metric.by_class import by_class
from medbench_algorithms.metric.dsn import DSN, SubspacePredictor
from medbench_algorithms.metric.feat import FEAT, SetTransformer
from medbench_algorithms.metric.matching_networks import FullContext, MatchingNetworks
from medbench_algorithms.metric.meta_baseline import MetaBaseline
from medbench_algorithms.metric.nearest_centroid import NearestCentroid
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_algorithms.metric.relation_network import RelationModule, RelationNetwork
from medbench_algorithms.metric.simple_cnaps import SimpleCNAPS

from .conftest import FakeRun, SmallConv, StripesSource, feature_episodes, one_of, ready

Array = NDArray[np.float64]


def arrays(support: Support, query: Tensor, e: int) -> tuple[Array, NDArray[np.int64], Array]:
    """Support features, labels and queries of one episode, in float64."""
    x, q = support.inputs[e].double().numpy(), query[e].double().numpy()
    return x, support.labels[e].numpy(), q


def test_features_by_class() -> None:
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    members, there = by_class(x, torch.tensor([1, 0, 1, 1]), 2)
    assert there.tolist() == [[True, False, False], [True, True, True]]
    assert members[there].tolist() == [[2.0], [1.0], [3.0], [4.0]]


# --- nearest centroid ----------------------------------------------------------------------------


def test_nearest_centroid_decides_as_scikit_learn() -> None:
    support, query = feature_episodes(shots=(9, 1, 8, 4), d=3)
    scores = NearestCentroid().adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        judge = SklearnCentroid().fit(x, y)
        np.testing.assert_array_equal(scores[e].argmax(-1), judge.predict(q))
        expected = -cdist(q, judge.centroids_, "sqeuclidean")
        np.testing.assert_allclose(scores[e], expected, rtol=1e-4, atol=1e-5)


def test_nearest_centroid_by_cosine_does_not_scale_features_before_their_mean() -> None:
    support, query = feature_episodes()
    support.inputs.mul_(torch.rand(support.inputs.shape[:2]).unsqueeze(-1) * 10)
    scores = NearestCentroid(distance="cosine").adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        means = np.stack([x[y == c].mean(0) for c in range(4)])
        np.testing.assert_allclose(scores[e], 1 - cdist(q, means, "cosine"), atol=1e-5)


# --- Simple CNAPS --------------------------------------------------------------------------------


def mahalanobis(x: Array, y: NDArray[np.int64], q: Array, beta: float) -> Array:
    """The paper's scores, with covariances of d x d numbers and their inverses."""
    scores = []
    for c in range(int(y.max()) + 1):
        own = x[y == c]
        of_class = np.cov(own.T) if len(own) > 1 else np.zeros((x.shape[1],) * 2)
        share = len(own) / (len(own) + 1)
        Q = share * of_class + (1 - share) * np.cov(x.T) + beta * np.eye(x.shape[1])
        v = q - own.mean(0)
        scores.append(-0.5 * np.einsum("nd,de,ne->n", v, np.linalg.inv(Q), v))
    return np.stack(scores, -1)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("d", [2, 7, 60])
@pytest.mark.parametrize("shots", [(3, 1, 5, 2), (1, 1, 1, 1), (9, 9, 9, 9)])
def test_simple_cnaps_against_dense_covariances(
    shots: tuple[int, ...], d: int, beta: float
) -> None:
    support, query = feature_episodes(shots=shots, d=d)
    scores = SimpleCNAPS(beta=beta).adapt(support).predict(query)
    for e in range(6):
        expected = mahalanobis(*arrays(support, query, e), beta)
        np.testing.assert_allclose(scores[e], expected, rtol=1e-5)


@pytest.mark.parametrize("change", [lambda x: x * 300, lambda x: x * 1e-3, lambda x: x + 50])
def test_simple_cnaps_keeps_its_digits(change: Callable[[Tensor], Tensor]) -> None:
    support, query = feature_episodes(shots=(5, 5, 5, 5), d=128, n_episodes=2)
    support.inputs.copy_(change(support.inputs))
    query = change(query)
    scores = SimpleCNAPS().adapt(support).predict(query.double())
    for e in range(2):
        expected = mahalanobis(*arrays(support, query, e), 1.0)
        np.testing.assert_allclose(scores[e], expected, rtol=1e-9)


# --- DSN -----------------------------------------------------------------------------------------


def subspace(own: Array, most: int | None = None) -> tuple[Array, Array]:
    """A class's mean and an orthonormal basis ``(d, r)``, by singular value decomposition."""
    r = len(own) - 1 if most is None else min(most, len(own) - 1)
    return own.mean(0), np.linalg.svd((own - own.mean(0)).T, full_matrices=False)[0][:, :r]


@pytest.mark.parametrize("most", [None, 0, 1, 2])
def test_dsn_against_singular_vectors(most: int | None) -> None:
    support, query = feature_episodes(d=9)
    method = ready(DSN(subspace_dim=most, temperature=2.0))
    scores = method.adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        for c in range(4):
            mean, basis = subspace(x[y == c], most)
            off = (q - mean) - (q - mean) @ basis @ basis.T
            np.testing.assert_allclose(scores[e, :, c], -(off**2).sum(-1) / 2, rtol=1e-5)


def test_dsn_with_one_shot_is_protonet() -> None:
    support, query = feature_episodes(shots=(1, 1, 1, 1))
    expected = ready(ProtoNet()).adapt(support).predict(query)
    torch.testing.assert_close(ready(DSN()).adapt(support).predict(query), expected)


def test_dsn_leaves_out_the_directions_of_repeated_images() -> None:
    support, query = feature_episodes(shots=(3, 2, 3, 2))
    order = torch.cat([torch.arange(10), torch.tensor([0, 0, 4])])
    again = Support(support.inputs[:, order], support.labels[:, order], 4, support.seeds)
    scores = ready(DSN()).adapt(again).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        for c in range(4):
            # The mean shifts towards what is repeated, within the same affine subspace.
            mean, basis = subspace(x[y == c])
            off = (q - mean) - (q - mean) @ basis @ basis.T
            np.testing.assert_allclose(scores[e, :, c], -(off**2).sum(-1), rtol=1e-4, atol=1e-5)


def test_dsn_never_spans_the_whole_space() -> None:
    support, query = feature_episodes(shots=(6, 6, 6, 6), d=3)
    scores = ready(DSN()).adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        for c in range(4):
            mean, basis = subspace(x[y == c], 2)
            off = (q - mean) - (q - mean) @ basis @ basis.T
            np.testing.assert_allclose(scores[e, :, c], -(off**2).sum(-1), rtol=1e-3, atol=1e-5)


def test_overlap_of_subspaces() -> None:
    support, query = feature_episodes(d=9)
    predictor = ready(DSN()).adapt(support)
    assert isinstance(predictor, SubspacePredictor)
    for e, found in enumerate(predictor.overlap()):
        x, y, _ = arrays(support, query, e)
        bases = [subspace(x[y == c])[1] for c in range(4)]
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        expected = sum(((bases[i].T @ bases[j]) ** 2).sum() for i, j in pairs)
        assert found.item() == pytest.approx(expected, rel=1e-6)


def dsn_loss(method: DSN, x: Tensor, labels: Tensor, q: Tensor, asked: Tensor) -> Tensor:
    return method.loss(nn.Identity(), Support(x, labels, 3, (0,)), q, asked)


@pytest.mark.parametrize("most", [None, 1])
def test_gradients_of_dsn(most: int | None) -> None:
    """Finite differences, and on the full span torch's own through a QR decomposition."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, 1, 1, 2, 2, 1, 2, 2])
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    asked = torch.tensor([0, 1, 2, 2, 0])
    method = DSN(subspace_dim=most, overlap_weight=0.5)
    assert torch.autograd.gradcheck(
        lambda x, q: dsn_loss(method, x, labels, q, asked), (x, q), atol=1e-6
    )
    if most is not None:
        return
    bases, logits = [], []
    for c in range(3):
        own = x[labels == c]
        mean = own.mean(0)
        basis = torch.linalg.qr((own[1:] - mean).T).Q
        off = (q - mean) - (q - mean) @ basis @ basis.T
        bases.append(basis)
        logits.append(-off.square().sum(-1))
    overlap = sum(2 * (bases[i].T @ bases[j]).square().sum() for i, j in ((0, 1), (0, 2), (1, 2)))
    expected = F.cross_entropy(torch.stack(logits, -1), asked) + 0.5 * overlap
    found = dsn_loss(method, x, labels, q, asked)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (x, q)), torch.autograd.grad(expected, (x, q))
    )


def test_gradients_of_dsn_stay_finite_where_singular_values_are_equal() -> None:
    x = torch.zeros(6, 5, requires_grad=True)
    with torch.no_grad():
        x[:4, :4] = torch.eye(4)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    for most in (None, 1, 2):
        support = Support(x, labels, 2, (0,))
        loss = DSN(subspace_dim=most).loss(
            nn.Identity(), support, torch.ones(2, 5), torch.tensor([0, 1])
        )
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.isfinite(gradient).all()


# --- FEAT ----------------------------------------------------------------------------------------


def by_torch(head: SetTransformer, x: Tensor, there: Tensor | None = None) -> Tensor:
    """The same layer of torch's own attention."""
    d = x.shape[-1]
    attention = nn.MultiheadAttention(d, 1, batch_first=True)
    with torch.no_grad():
        weights = [layer.weight for layer in (head.queries, head.keys, head.values)]
        attention.in_proj_weight.copy_(torch.cat(weights))
        attention.in_proj_bias.zero_()
    attention.out_proj = head.out  # type: ignore[assignment]
    read, _ = attention.eval()(x, x, x, key_padding_mask=None if there is None else ~there)
    return F.layer_norm(x + read, (d,), head.norm.weight, head.norm.bias)


def feat_head(method: FEAT) -> SetTransformer:
    head = method.build(SmallConv(width=1)).eval()  # 16 features
    with torch.no_grad():
        head.norm.weight.uniform_(0.5, 2)
        head.norm.bias.normal_()
        head.out.bias.normal_()
    return head


def test_feat_adapts_the_means_as_torchs_attention_would() -> None:
    method = FEAT(temperature=5.0)
    head = feat_head(method)
    support, query = feature_episodes(d=16)
    with torch.no_grad():
        scores = method.predictor(head, support).predict(query)
        for e in range(6):
            x, y = support.inputs[e], support.labels[e]
            means = torch.stack([x[y == c].mean(0) for c in range(4)])
            adapted = by_torch(head, means.unsqueeze(0))[0]
            expected = -torch.cdist(query[e], adapted).square() / 5
            torch.testing.assert_close(scores[e], expected, rtol=1e-4, atol=1e-4)


def test_the_loss_of_feat_against_a_loop_over_classes() -> None:
    method = FEAT(temperature=5.0, balance=0.3, aux_temperature=7.0)
    head = feat_head(method)
    support, query = feature_episodes(d=16)
    one, asked = one_of(support, 0), torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 0])
    with torch.no_grad():
        found = method.loss(head, one, query[0], asked)
        logits = method.predictor(head, one).predict(query[0])
        x, y = torch.cat([one.inputs, query[0]]), torch.cat([one.labels, asked])
        centres = torch.stack([by_torch(head, x[y == c].unsqueeze(0))[0].mean(0) for c in range(4)])
        aux = F.cross_entropy(-torch.cdist(x, centres).square() / 7, y)
        torch.testing.assert_close(found, F.cross_entropy(logits, asked) + 0.3 * aux)


def test_feat_drops_out_in_training_alone() -> None:
    head = SetTransformer(16)
    x = torch.randn(5, 16)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


# --- Matching Networks ---------------------------------------------------------------------------


def test_matching_networks_by_hand() -> None:
    support = Support(
        torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]), torch.tensor([0, 1, 0]), 2, (0,)
    )
    scores = ready(MatchingNetworks()).adapt(support).predict(torch.tensor([[5.0, 0.0]]))
    e = np.e  # cosines 1, 0 and -1
    share = np.array([e + 1 / e, 1]) / (e + 1 + 1 / e)
    np.testing.assert_allclose(scores[0].exp(), share, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_matching_networks_against_loops(scale: float) -> None:
    support, query = feature_episodes()
    wide = Support(support.inputs.double(), support.labels, 4, support.seeds)
    scores = ready(MatchingNetworks(scale=scale)).adapt(wide).predict(query.double())
    assert torch.isfinite(scores).all()
    for e in range(6):
        x, y, q = arrays(support, query, e)
        logits = scale * (1 - cdist(q, x, "cosine"))
        top = logits.max(-1, keepdims=True)
        attention = np.exp(logits - top) / np.exp(logits - top).sum(-1, keepdims=True)
        shares = np.stack([attention[:, y == c].sum(-1) for c in range(4)], -1)
        np.testing.assert_allclose(scores[e].exp(), shares, rtol=1e-9)


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def lstm(x: Array, h: Array, c: Array, weights: dict[str, Array], at: str) -> tuple[Array, Array]:
    """One step; torch's gates are input, forget, cell, output."""
    gates = x @ weights[f"weight_ih{at}"].T + h @ weights[f"weight_hh{at}"].T
    i, f, g, o = np.split(gates + weights[f"bias_ih{at}"] + weights[f"bias_hh{at}"], 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def in_full_context(
    network: FullContext, x: Array, q: Array, steps: int
) -> tuple[list[Array], list[Array]]:
    """Appendix A of the paper, an image at a time."""
    outer = {k: v.double().numpy() for k, v in network.along_support.state_dict().items()}
    inner = {k: v.double().numpy() for k, v in network.reader.state_dict().items()}
    d = x.shape[1]
    g = x.copy()
    for at, order in (("_l0", range(len(x))), ("_l0_reverse", reversed(range(len(x))))):
        h = c = np.zeros(d)
        for i in order:
            h, c = lstm(x[i], h, c, outer, at)
            g[i] += h
    found = []
    for one in q:
        h, c = one, np.zeros(d)
        for _ in range(steps):
            attention = np.exp(g @ h - (g @ h).max())
            read = attention / attention.sum() @ g
            state, c = lstm(np.concatenate([one, read]), h, c, inner, "")
            h = state + one
        found.append(h)
    return list(g), found


@pytest.mark.parametrize("steps", [None, 3])
def test_full_context_embeddings_against_loops(steps: int | None) -> None:
    method = MatchingNetworks(fce=True, fce_steps=steps, scale=4.0)
    head = method.build(SmallConv(width=1)).eval().double()
    support, query = feature_episodes(n_episodes=2, d=16)
    wide = Support(support.inputs.double(), support.labels, 4, support.seeds)
    with torch.no_grad():
        scores = method.predictor(head, wide).predict(query.double())
    assert isinstance(head, FullContext)
    for e in range(2):
        x, y, q = arrays(support, query, e)
        g, f = in_full_context(head, x, q, 11 if steps is None else steps)
        attention = np.exp(4 * (1 - cdist(f, g, "cosine")))
        shares = np.stack([attention[:, y == c].sum(-1) for c in range(4)], -1)
        shares /= shares.sum(-1, keepdims=True)
        np.testing.assert_allclose(scores[e].exp(), shares, rtol=1e-9)


def test_full_context_embeddings_read_the_support_set_in_order() -> None:
    method = MatchingNetworks(fce=True)
    head = method.build(SmallConv(width=1)).eval()
    support, query = feature_episodes(d=16)
    turned = Support(support.inputs.flip(1), support.labels.flip(1), 4, support.seeds)
    with torch.no_grad():
        one, other = (method.predictor(head, s).predict(query) for s in (support, turned))
        assert (one - other).abs().max() > 1e-3
        alone = method.predictor(head, support).predict(query[:, :1])
        torch.testing.assert_close(alone, one[:, :1], rtol=1e-5, atol=1e-6)


def test_a_network_of_full_context_must_have_been_learned() -> None:
    with pytest.raises(ContractError, match="Meta-train it first"):
        MatchingNetworks(fce=True).prepare(SmallConv(), {})


# --- Meta-Baseline -------------------------------------------------------------------------------


def test_meta_baseline_against_loops() -> None:
    support, query = feature_episodes()
    method = ready(MetaBaseline(), {"head.value": torch.tensor(3.5)})
    scores = method.adapt(support).predict(query)
    for e in range(6):
        x, y, q = arrays(support, query, e)
        means = np.stack([x[y == c].mean(0) for c in range(4)])
        np.testing.assert_allclose(scores[e], 3.5 * (1 - cdist(q, means, "cosine")), atol=1e-5)


def test_meta_baseline_learns_its_scale_in_the_second_half_of_the_budget() -> None:
    def scale_after(n_steps: int) -> float:
        torch.manual_seed(1)
        source = StripesSource()
        run = FakeRun(source, n_steps, images=8 * source.images_per_task)
        return MetaBaseline().meta_train(SmallConv(), source, run)["head.value"].item()

    assert scale_after(4) == 10
    assert scale_after(5) != 10


# --- Relation Networks ---------------------------------------------------------------------------


def map_episodes(shape: tuple[int, int, int]) -> tuple[Support, Tensor]:
    support, query = feature_episodes(n_episodes=2, d=shape[0] * shape[1] * shape[2])
    inputs = support.inputs.unflatten(-1, shape)
    return Support(inputs, support.labels, 4, support.seeds), query.unflatten(-1, shape)


def as_layers(module: RelationModule, pools: list[list[int]], padding: int) -> nn.Module:
    """The paper's stack of layers, with the same weights."""
    convolutions = []
    for old in (module.first, module.second):
        new = nn.Conv2d(old.in_channels, 64, 3, padding=padding)
        new.load_state_dict(old.state_dict())
        convolutions.append(new)
    return nn.Sequential(
        *(convolutions[0], module.first_norm, nn.ReLU(), nn.MaxPool2d(pools[0])),
        *(convolutions[1], module.second_norm, nn.ReLU(), nn.MaxPool2d(pools[1])),
        *(nn.Flatten(), module.hidden, nn.ReLU(), module.score),
    )


PLACES: dict[tuple[int, int, int], tuple[list[list[int]], int, int]] = {
    # Shape of a map: pools, padding, inputs of the layer of eight.
    (3, 5, 5): ([[2, 2], [2, 2]], 1, 64),  # Omniglot, in the authors' code
    (3, 19, 19): ([[2, 2], [2, 2]], 0, 576),  # miniImageNet, in the authors' code
    (2, 10, 12): ([[2, 2], [2, 2]], 0, 64),
    (5, 7, 7): ([[2, 2], [2, 2]], 1, 64),
    (4, 3, 3): ([[2, 2], [1, 1]], 1, 64),
    (4, 2, 9): ([[2, 2], [1, 2]], 1, 128),
    (6, 1, 1): ([[1, 1], [1, 1]], 1, 64),
}


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("shape", PLACES)
def test_relation_network_against_layers_on_concatenated_pairs(
    shape: tuple[int, int, int], pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, padding, n_inputs = PLACES[shape]
    method = RelationNetwork(pooling=pooling)  # type: ignore[arg-type]
    module = RelationModule(*shape)
    assert module.hidden.in_features == n_inputs
    for norm in (module.first_norm, module.second_norm):
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    nn.init.normal_(module.hidden.weight)
    module.eval()
    layers = as_layers(module, pools, padding).eval()
    support, query = map_episodes(shape)
    with torch.no_grad():
        scores = method.predictor(module, support).predict(query)
        for e in range(2):
            x, y = support.inputs[e], support.labels[e]
            for c in range(4):
                own = x[y == c].sum(0) if pooling == "sum" else x[y == c].mean(0)
                pairs = torch.cat([own.expand_as(query[e]), query[e]], dim=1)
                expected = layers(pairs).squeeze(-1)
                torch.testing.assert_close(scores[e, :, c], expected, rtol=1e-4, atol=1e-4)
        monkeypatch.setattr(relation_network, "_CHUNK", 5 * scores.shape[-1] * 64)
        again = method.predictor(module, support).predict(query)
        torch.testing.assert_close(again, scores, rtol=1e-4, atol=1e-4)


def test_the_loss_of_relation_networks_is_that_of_least_squares() -> None:
    method = RelationNetwork(pooling="sum")
    module = RelationModule(3, 5, 5)
    support, query = map_episodes((3, 5, 5))
    one, asked = one_of(support, 0), torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 0])
    layers = as_layers(module, [[2, 2], [2, 2]], 1)
    pairs = [torch.cat([one.inputs[one.labels == c].sum(0), q]) for q in query[0] for c in range(4)]
    # In training BatchNorm sees all pairs of the episode.
    relations = layers(torch.stack(pairs)).sigmoid().reshape(9, 4)
    expected = (relations - torch.eye(4)[asked]).square().mean()
    torch.testing.assert_close(method.loss(module, one, query[0], asked), expected)


def test_relation_network_asks_the_backbone_for_its_maps_and_changes_nothing() -> None:
    backbone = SmallConv(width=6).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    module = RelationNetwork().build(backbone)
    assert module.first.in_channels == 12
    assert module.hidden.in_features == 64  # of 4 x 4 places
    assert all(part.training for part in backbone.modules())
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


# --- training ------------------------------------------------------------------------------------

TRAINED: dict[str, Callable[[], Episodic[Any]]] = {
    "matching-networks": lambda: MatchingNetworks(lr=3e-3),
    "matching-networks-fce": lambda: MatchingNetworks(lr=3e-3, fce=True, fce_steps=2),
    "relation-network": lambda: RelationNetwork(lr=3e-3),
    "relation-network-sum": lambda: RelationNetwork(lr=3e-3, pooling="sum"),
    "feat": lambda: FEAT(lr=3e-3),
    "meta-baseline": lambda: MetaBaseline(lr=3e-3),
    "dsn": lambda: DSN(lr=3e-3),
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_training_learns_serves_new_tasks(name: str) -> None:
    torch.manual_seed(5)
    source, backbone, method = StripesSource(), SmallConv(), TRAINED[name]()
    run = FakeRun(source, 40, images=40 * source.images_per_task)
    learned = method.meta_train(backbone, source, run)
    assert sum(run.losses[-8:]) < 0.95 * sum(run.losses[:8])
    fresh, again = SmallConv(), TRAINED[name]()
    fresh.load_state_dict({k[9:]: v for k, v in learned.items() if k.startswith("backbone.")})
    again.prepare(fresh.eval(), {k: v for k, v in learned.items() if k.startswith("head.")})
    right = []
    with torch.no_grad():
        for i in range(25):
            task = source.task("test", i)
            inputs = again.embed(fresh, task.support.inputs)
            support = Support(inputs, task.support.labels, 3, (i,))
            predictor = again.adapt(support)
            assert predictor.n_adapted == 0
            scores = predictor.predict(again.embed(fresh, task.query))
            right.append((scores.argmax(-1) == task.query_labels).float().mean())
    assert torch.stack(right).mean() > 0.7  # chance is a third
