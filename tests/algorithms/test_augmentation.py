"""Methods that make more of few images, against loops of the papers' formulas and other code."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from medbench.api import ContractError, InputSpec, Support
from medbench_algorithms.augmentation.analogies import (
    AnalogyGenerator,
    analogy_loss,
    cluster,
    mine,
)
from medbench_algorithms.augmentation.analogy_training import AnalogyTraining
from medbench_algorithms.augmentation.distribution_calibration import (
    DistributionCalibration,
    covariance_roots,
)
from medbench_algorithms.augmentation.hallucination import FeatureHallucination
from medbench_algorithms.augmentation.mixup_support import MixupSupport, cutmix, mixup
from medbench_algorithms.augmentation.of_images import soft_logistic
from medbench_algorithms.augmentation.safe_transforms import SafeTransforms
from medbench_algorithms.augmentation.support_augmentation import SupportAugmentation
from medbench_algorithms.augmentation.task_augmentation import (
    ProtoNetRotations,
    TurningSource,
    turn_classes,
)
from medbench_algorithms.augmentation.tukey import tukey
from medbench_algorithms.common.pretrain import Supervised
from medbench_algorithms.common.primal_logistic import solve_primal
from medbench_algorithms.fine_tuning.linear_probe import LinearProbe
from medbench_algorithms.metric.protonet import ProtoNet

from .conftest import FakeRun, SmallConv, StripesSource, feature_episodes, one_of

SHOTS = (3, 1, 5, 2)


# --- logistic regression on many examples --------------------------------------------------------


@pytest.mark.parametrize("scale", ["good", "uneven", "separable"])
@pytest.mark.parametrize("way", [2, 5])
def test_primal_logistic_regression_is_at_the_optimum(way: int, scale: str) -> None:
    """Against scikit-learn's own Newton solver, three problems at once."""
    rng = np.random.default_rng(way)
    y = rng.integers(0, way, (3, 300))
    centres = (8.0 if scale == "separable" else 1.0) * rng.normal(size=(3, way, 12))
    x = np.take_along_axis(centres, y[..., None], 1) + rng.normal(size=(3, 300, 12))
    if scale == "uneven":
        x = x * np.logspace(-2, 2, 12)
    x = x - x.mean(1, keepdims=True)
    targets = nn.functional.one_hot(torch.from_numpy(y), way).double()
    C = 0.5 if way == 2 else 1.0  # see LinearProbe
    w, b = solve_primal(torch.from_numpy(x), targets, C)
    for i in range(3):
        p = torch.softmax(torch.from_numpy(x[i]) @ w[i].T + b[i], -1).numpy()
        gradient = w[i].numpy() - C * (np.eye(way)[y[i]] - p).T @ x[i]
        assert np.abs(gradient).max() <= 1e-6 * C * np.abs(x[i]).max() * 300
        judge = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        judge.fit(x[i], y[i])
        np.testing.assert_allclose(p, judge.predict_proba(x[i]), atol=1e-5)


# --- distribution calibration --------------------------------------------------------------------


def base_statistics(n_base: int = 6, d: int = 7) -> dict[str, Tensor]:
    """Of non-negative features; one class has fewer examples than dimensions, one a single one."""
    rng = torch.Generator().manual_seed(1)
    means, covariances = [], []
    for n in (50, 30, 4, 1, 40, 20)[:n_base]:
        x = torch.rand(n, d, generator=rng).double() + torch.rand(d, generator=rng)
        means.append(x.mean(0))
        covariances.append(x.mT.cov() if n > 1 else torch.zeros(d, d).double())
    return {
        "base_means": torch.stack(means).float(),
        "base_covariances": torch.stack(covariances).float(),
    }


def calibration(**params: Any) -> DistributionCalibration:
    method = DistributionCalibration(**params)
    method.prepare(SmallConv(), base_statistics())
    return method


def positive_episodes(**shape: Any) -> tuple[Support, Tensor]:
    support, query = feature_episodes(**shape)
    return Support(support.inputs.abs(), support.labels, support.n_way, support.seeds), query.abs()


def by_the_book(x: np.ndarray, k: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Equations 5 and 6 for one feature, as written."""
    base = {k: v.double().numpy() for k, v in base_statistics().items()}
    distances = [-(np.linalg.norm(m - x) ** 2) for m in base["base_means"]]
    nearest = np.argsort(distances)[::-1][:k]
    mean = (sum(base["base_means"][i] for i in nearest) + x) / (k + 1)
    covariance = sum(base["base_covariances"][i] for i in nearest) / k + alpha
    return mean, covariance


@pytest.mark.parametrize("k", [1, 2, 6])
def test_calibrated_statistics_and_moments_of_samples_are_the_papers(k: int) -> None:
    support, _ = positive_episodes(n_episodes=2)
    method = calibration(k=k)
    x = tukey(support.inputs.double(), 0.5)
    means, nearest = method.calibrate(x)
    assert nearest.shape[-1] == k
    counts = torch.full(support.labels.shape, 20_000)
    sampled, of = method.sample(support, torch.tensor([0, 1]), x, counts)
    for e, i in itertools.product(range(2), (0, 4)):
        mean, covariance = by_the_book(np.sqrt(support.inputs[e, i].double().numpy()), k, 0.21)
        np.testing.assert_allclose(means[e, i], mean, rtol=1e-6)
        own = sampled[e][of[e] == i].numpy()
        error = np.sqrt(np.diag(covariance) / 20_000)
        assert np.abs((own.mean(0) - mean) / error).max() < 4.5
        # Standard errors of a Gaussian's covariances.
        v = np.diag(covariance)
        error = np.sqrt((covariance**2 + np.outer(v, v)) / 20_000)
        assert np.abs((np.cov(own.T) - covariance) / error).max() < 4.5


def test_more_neighbours_than_source_classes_take_them_all() -> None:
    support, query = positive_episodes()
    found = calibration(k=99, n_sampled=50).adapt(support).predict(query)
    torch.testing.assert_close(found, calibration(k=6, n_sampled=50).adapt(support).predict(query))


def test_roots_square_to_the_covariances() -> None:
    covariances = base_statistics()["base_covariances"].double()
    roots = covariance_roots(covariances)
    torch.testing.assert_close(roots @ roots.mT, covariances, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("shots", "power"), [(SHOTS, 0.5), ((1, 1), 0.5), ((1, 1, 1), 1.0), ((7, 7), 0.5)]
)
def test_distribution_calibration_is_scikit_learn_on_its_samples(
    shots: tuple[int, ...], power: float
) -> None:
    support, query = positive_episodes(n_episodes=2, n_way=len(shots), shots=shots)
    method = calibration(n_sampled=150, power=power)
    scores = method.adapt(support).predict(query)
    x = tukey(support.inputs.double(), power)
    counts = method.counts(support.labels, len(shots))
    for e in range(2):
        y = support.labels[e].numpy()
        assert counts[e].tolist() == [150 // shots[c] for c in y]
        sampled, of = method.sample(support, torch.tensor([e]), x[[e]], counts[[e]])
        everything = np.concatenate([x[e].numpy(), sampled[0].numpy()])
        labels = np.concatenate([y, y[of[0].numpy()]])
        # It sees each class as often, up to what 150 leaves when divided by the shots.
        per_class = np.bincount(labels)
        assert [*per_class] == [s + s * (150 // s) for s in shots]
        judge = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(everything, labels)
        expected = judge.predict_proba(query[e].double().numpy() ** power)
        np.testing.assert_allclose(scores[e].softmax(-1), expected, atol=1e-4)


def test_episodes_whose_classes_have_other_shots_can_share_a_batch() -> None:
    support, query = positive_episodes(n_episodes=2, n_way=2, shots=(2, 4))
    labels = support.labels.clone()
    labels[1] = torch.tensor([0, 1, 1, 1, 1, 1])
    mixed = Support(support.inputs, labels, 2, support.seeds)
    method = calibration(n_sampled=99)  # 98 or 99 features of a class
    together = method.adapt(mixed).predict(query)
    for e in range(2):
        alone = method.adapt(one_of(mixed, e)).predict(query[e])
        torch.testing.assert_close(together[e], alone, rtol=1e-4, atol=1e-4)


def test_tukey_keeps_the_sign_and_never_gives_nan() -> None:
    found = tukey(torch.tensor([4.0, 0.0, -9.0]), 0.5)
    assert found.tolist() == [2.0, 0.0, -3.0]


def test_distribution_calibration_without_covariances_says_what_to_do() -> None:
    with pytest.raises(ContractError, match=r"base_covariances from training.*fewer features"):
        DistributionCalibration().prepare(SmallConv(), {"base_means": torch.zeros(2, 7)})


# --- task augmentation ---------------------------------------------------------------------------


def test_turned_classes_keep_labels_and_their_queries_turn_with_them() -> None:
    task = StripesSource().task("x")
    turned = turn_classes(task, torch.tensor([0, 1, 3]))
    s, t = task.support, turned.support
    assert torch.equal(s.labels, t.labels)
    assert torch.equal(task.query_labels, turned.query_labels)
    assert t.n_way == 3
    assert t.seeds == s.seeds
    pairs = [
        (s.inputs, t.inputs, s.labels),
        (task.query, turned.query, task.query_labels),
    ]
    for before, after, labels in pairs:
        for image, new, c in zip(before.numpy(), after.numpy(), labels.tolist(), strict=True):
            np.testing.assert_array_equal(new[0], np.rot90(image[0], (0, 1, 3)[c]))


def test_turning_becomes_as_probable_as_asked_along_its_ramp() -> None:
    source = TurningSource(StripesSource(), 0.5, 100, seed=0)
    assert not source.turns(0, 0, 1000).any()
    for step, probability in ((50, 0.25), (100, 0.5), (900, 0.5)):
        turns = source.turns(step, 0, 4000)
        assert (turns > 0).float().mean().item() == pytest.approx(probability, abs=0.03)
        shares = torch.bincount(turns, minlength=4)[1:] / (turns > 0).sum()
        torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.04, rtol=0)
    assert torch.equal(source.turns(7, 1, 9), source.turns(7, 1, 9))
    assert not torch.equal(source.turns(900, 0, 50), source.turns(901, 0, 50))


def test_protonet_with_rotations_learns_and_without_them_is_protonet() -> None:
    def train(method: Any) -> tuple[dict[str, Tensor], FakeRun]:
        torch.manual_seed(5)
        source = StripesSource()
        run = FakeRun(source, 40, images=40 * 18)
        return method.meta_train(SmallConv(), source, run), run

    _, run = train(ProtoNetRotations(lr=3e-3))
    assert run.accuracies[-1] > 0.65
    learned, still = train(ProtoNetRotations(lr=3e-3, rotation_p=0.0))
    expected, plain = train(ProtoNet(lr=3e-3))
    assert still.losses == plain.losses
    assert all(torch.equal(learned[k], expected[k]) for k in expected)
    assert run.losses != plain.losses


# --- mixtures ------------------------------------------------------------------------------------


def test_cutmix_against_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(3)
    images, partners = torch.randn(40, 2, 10, 14), torch.randn(40, 2, 10, 14)
    shares, centres = rng.random(40), rng.random((40, 2))
    found, left = cutmix(images, partners, torch.from_numpy(shares), torch.from_numpy(centres))
    for i in range(40):
        cut_h, cut_w = (int(n * np.sqrt(1 - shares[i])) for n in (10, 14))
        cy, cx = int(centres[i, 0] * 10), int(centres[i, 1] * 14)
        top, bottom = (np.clip(v, 0, 10) for v in (cy - cut_h // 2, cy + cut_h // 2))
        west, east = (np.clip(v, 0, 14) for v in (cx - cut_w // 2, cx + cut_w // 2))
        expected = images[i].clone()
        expected[:, top:bottom, west:east] = partners[i, :, top:bottom, west:east]
        assert torch.equal(found[i], expected)
        assert left[i].item() == pytest.approx(1 - (bottom - top) * (east - west) / 140)
    assert 0.1 < left.mean() < 0.9


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "both"])
def test_labels_of_mixtures_are_the_shares_of_their_images(mix: str) -> None:
    """Each support image is a constant of its own, so that a mixture tells its parts."""
    values = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    images = values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    labels = torch.tensor([0, 2, 1, 0, 1])
    support = Support(images, labels, 3, (5,))
    mixed, targets = MixupSupport(mix=mix, n_mixed=40).mixed(support)  # type: ignore[arg-type]
    assert len(mixed) == 200
    torch.testing.assert_close(targets.sum(-1), torch.ones(200).double())
    n_constant = 0
    for i, (image, target) in enumerate(zip(mixed, targets, strict=True)):
        own = values[i % 5].item()
        # Of all partners and shares one explains the mean of the image.
        fits = []
        for j in range(5):
            other = values[j].item()
            share = 1.0 if other == own else (image.mean().item() - other) / (own - other)
            expected = torch.zeros(3).double()
            expected[labels[i % 5]] += share
            expected[labels[j]] += 1 - share
            fits.append((expected - target).abs().max().item())
        assert min(fits) < 1e-4
        n_constant += bool(image.max() == image.min())
    # A sum of constants is constant; a box is not, unless it is empty, covers all, or an image
    # meets itself (one of five).
    assert {"mixup": n_constant == 200, "cutmix": n_constant < 100, "both": 100 < n_constant < 180}[
        mix
    ]


def test_shares_of_mixtures_are_of_the_beta_asked_for() -> None:
    values = torch.arange(2.0).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    support = Support(values, torch.tensor([0, 1]), 2, (5,))
    for alpha, variance in ((1.0, 1 / 12), (4.0, 1 / 36)):
        mixed, _ = MixupSupport(mix="mixup", alpha=alpha, n_mixed=4000).mixed(support)
        means = mixed.mean((1, 2, 3))
        apart = means[(means > 0) & (means < 1)]  # not mixed with itself
        assert len(apart) == pytest.approx(4000, rel=0.1)
        assert apart.mean().item() == pytest.approx(0.5, abs=0.02)
        assert apart.var().item() == pytest.approx(variance, rel=0.1)


def test_mixup_of_two_is_their_weighted_sum() -> None:
    a, b = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    mixed, shares = mixup(a, b, torch.tensor([0.25, 1.0]).double())
    torch.testing.assert_close(mixed[0], 0.25 * a[0] + 0.75 * b[0])
    assert torch.equal(mixed[1], a[1])
    assert shares.tolist() == [0.25, 1.0]


def test_logistic_regression_takes_soft_labels() -> None:
    x = torch.randn(12, 5).double()
    x = x / x.norm(dim=-1, keepdim=True)
    targets = torch.rand(12, 3).double()
    targets = targets / targets.sum(-1, keepdim=True)
    head = soft_logistic(x, targets, 4.0)
    # As an example of each class, weighted by its share.
    judge = LogisticRegression(C=4.0, solver="newton-cholesky", tol=1e-12)
    judge.fit(
        np.repeat(x.numpy(), 3, 0), np.tile(range(3), 12), sample_weight=targets.flatten().numpy()
    )
    np.testing.assert_allclose(
        head.predict(x).softmax(-1).numpy(), judge.predict_proba(x.numpy()), atol=1e-6
    )


# --- support augmentation ------------------------------------------------------------------------

STILL = {
    "rotation": 0.0,
    "shift": 0.0,
    "zoom": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "flips": False,
}
SPEC = InputSpec(size=32, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def smooth_images(n: int = 3) -> Tensor:
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    return nn.functional.interpolate(coarse, size=32, mode="bilinear")


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(SPEC.mean).view(-1, 1, 1)) / torch.tensor(SPEC.std).view(-1, 1, 1)


def test_no_change_is_no_change() -> None:
    images = normalised(smooth_images())
    drawn = torch.rand(3, 7) * 2 - 1
    torch.testing.assert_close(SafeTransforms(**STILL).apply(images, drawn, SPEC), images)  # type: ignore[arg-type]


def test_movements_are_those_of_torchvision() -> None:
    pixels = smooth_images(4)
    how = STILL | {"rotation": 20.0, "shift": 0.1, "zoom": 0.2}
    transforms = SafeTransforms(**how)  # type: ignore[arg-type]
    drawn = transforms.draw(4, torch.Generator().manual_seed(0))
    found = transforms.apply(normalised(pixels), drawn, SPEC)
    for i in range(4):
        angle, x, y, zoom = drawn[i, :4].tolist()
        expected = tv.affine(
            pixels[i],
            # torchvision turns clockwise, which on images with y downwards is a positive angle.
            angle=-20 * angle,
            translate=[32 * 0.1 * x, 32 * 0.1 * y],
            scale=1 + 0.2 * zoom,
            shear=[0.0, 0.0],
            interpolation=tv.InterpolationMode.BILINEAR,
        )
        inside = (slice(None), slice(10, 22), slice(10, 22))
        torch.testing.assert_close(
            found[i][inside], normalised(expected)[inside], atol=2e-4, rtol=1e-4
        )


def test_brightness_and_contrast_are_those_of_torchvision() -> None:
    pixels = 0.3 + 0.3 * smooth_images(3).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    how = STILL | {"brightness": 0.2, "contrast": 0.3}
    transforms = SafeTransforms(**how)  # type: ignore[arg-type]
    drawn = transforms.draw(3, torch.Generator().manual_seed(0))
    found = transforms.apply(normalised(pixels), drawn, SPEC)
    for i in range(3):
        expected = tv.adjust_brightness(pixels[i], 1 + 0.2 * drawn[i, 4].item())
        expected = tv.adjust_contrast(expected, 1 + 0.3 * drawn[i, 5].item())
        # Its weights of grey add up to 0.9999.
        torch.testing.assert_close(found[i], normalised(expected), atol=1e-3, rtol=1e-3)


def test_flips_mirror_left_and_right_and_borders_go_on() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    spec = InputSpec(size=4, channels=1, mean=(0.0,), std=(1.0,))
    drawn = torch.zeros(1, 7)
    drawn[0, 6] = 0.5
    flipping = SafeTransforms(**(STILL | {"flips": True}))  # type: ignore[arg-type]
    torch.testing.assert_close(flipping.apply(image, drawn, spec), image.flip(-1))
    torch.testing.assert_close(flipping.apply(image, -drawn, spec), image)
    shifting = SafeTransforms(**(STILL | {"shift": 0.25}))  # type: ignore[arg-type]
    drawn = torch.zeros(1, 7)
    drawn[0, 1] = 1.0  # one pixel to the right
    found = shifting.apply(image, drawn, spec)
    torch.testing.assert_close(found[..., 1:], image[..., :-1])
    torch.testing.assert_close(found[..., 0], image[..., 0])


@pytest.mark.parametrize("head", ["logistic", "prototypes"])
def test_support_augmentation_fits_originals_and_copies(head: str) -> None:
    task = StripesSource().task("x")
    backbone = SmallConv().eval()
    method = SupportAugmentation(n_augmented=3, head=head)  # type: ignore[arg-type]
    method.prepare(backbone, {})
    images = method.augmented(task.support, backbone)
    n = len(task.support.labels)
    assert len(images) == 4 * n
    assert torch.equal(images[:n], task.support.inputs)
    differences = [(images[i * n : (i + 1) * n] - images[:n]).abs().mean() for i in (1, 2, 3)]
    assert 0.01 < min(differences) < max(differences) < 0.3
    with torch.no_grad():
        features, query = (backbone(v) for v in (images, task.query))
    unit, asked = (nn.functional.normalize(v, dim=-1) for v in (features, query))
    labels = task.support.labels.repeat(4)
    scores = method.adapt(task.support).predict(task.query)
    if head == "logistic":
        judge = LinearProbe(C=1.0, normalize="l2").adapt(Support(features, labels, 3, (0,)))
        torch.testing.assert_close(scores, judge.predict(query), rtol=1e-4, atol=1e-4)
    else:
        means = torch.stack([unit[labels == c].mean(0) for c in range(3)])
        expected = -torch.cdist(asked, means).square()
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


# --- feature hallucination -----------------------------------------------------------------------


def test_clusters_are_at_a_fixed_point_of_k_means() -> None:
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(60, 3, generator=rng) + 6 * torch.randint(0, 3, (60, 1), generator=rng)
    found = cluster(x, 5, rng)
    judge = KMeans(5, init=found.numpy(), n_init=1, max_iter=1).fit(x.numpy())
    np.testing.assert_allclose(judge.cluster_centers_, found.numpy(), atol=1e-5)
    few = cluster(x[:3], 5, rng)
    assert {tuple(r) for r in few.tolist()} == {tuple(r) for r in x[:3].tolist()}


def test_analogies_are_the_best_pairs_of_other_classes() -> None:
    centroids = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    classes = torch.tensor([0, 0, 0, 2, 2, 2, 3, 3, 5])
    expected = set()
    for a, b in itertools.permutations(range(9), 2):
        if classes[a] != classes[b]:
            continue
        best, pair = 0.0, None
        for c, d in itertools.permutations(range(9), 2):
            if classes[c] != classes[d] or classes[c] == classes[a]:
                continue
            u, v = (centroids[a] - centroids[b]).numpy(), (centroids[c] - centroids[d]).numpy()
            cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
            if cosine > best:
                best, pair = cosine, (c, d)
        if pair:
            expected.add((a, b, *pair))
    found = {tuple(q) for q in mine(centroids, classes).tolist()}
    assert found == expected
    assert len(found) > 8


def test_analogy_loss_is_its_formula() -> None:
    made, wanted = torch.rand(6, 4).double(), torch.rand(6, 4).double()
    labels, classifier = torch.tensor([0, 1, 2, 2, 1, 0]), nn.Linear(4, 3).double()
    logits = (made @ classifier.weight.T + classifier.bias).detach().numpy()
    told = np.mean([np.logaddexp.reduce(z) - z[y] for z, y in zip(logits, labels, strict=True)])
    expected = 10 * ((made - wanted) ** 2).mean().item() + told
    found = analogy_loss(made, wanted, labels, classifier, 10.0)
    assert found.item() == pytest.approx(expected)


def test_the_generator_learns_to_complete_parallelograms() -> None:
    """Classes that vary alike around means of their own: b = a + (d - c)."""
    rng = torch.Generator().manual_seed(1)
    moves = torch.rand(6, 5, generator=rng)
    means = 1 + torch.rand(4, 1, 5, generator=rng)
    centroids = (means + moves).flatten(0, 1)
    classes = torch.arange(4).repeat_interleave(6)
    classifier = nn.Linear(5, 4)
    nn.init.zeros_(classifier.weight)  # the distance alone
    quads = mine(centroids, classes)
    a, b, c, d = quads.unbind(-1)
    torch.testing.assert_close(
        centroids[a] - centroids[b], centroids[c] - centroids[d], atol=1e-5, rtol=1e-5
    )
    trainer = AnalogyTraining(generator_epochs=300)
    network = trainer.fit(centroids, classes, classifier, rng, True)
    with torch.no_grad():
        made = network(centroids[a], centroids[c], centroids[d])
    error = (made - centroids[b]).square().mean()
    still = (centroids[a] - centroids[b]).square().mean()
    assert error < 0.1 * still


class Adding(nn.Module):
    """A generator that completes parallelograms."""

    def forward(self, seed: Tensor, origin: Tensor, end: Tensor) -> Tensor:
        return seed + end - origin


def hallucinating(n_generated: int = 4) -> tuple[FeatureHallucination, Tensor, Tensor]:
    method = FeatureHallucination(n_generated=n_generated)
    centroids = torch.randn(6, 7, generator=torch.Generator().manual_seed(2))
    classes = torch.tensor([1, 1, 1, 4, 4, 6])
    network = AnalogyGenerator(7)
    learned = {f"generator.{k}": v for k, v in network.state_dict().items()}
    learned |= {"centroids": centroids, "centroid_classes": classes}
    method.prepare(SmallConv(), learned | {"generator.rectified": torch.tensor(True)})
    method._generator = Adding()  # type: ignore[assignment]
    return method, centroids, classes


def test_classes_are_filled_up_with_examples_changed_as_source_classes_vary() -> None:
    method, centroids, classes = hallucinating()
    support, query = feature_episodes(n_episodes=3, shots=SHOTS)
    made, is_used = method.hallucinate(support, support.inputs, support.labels)
    scores = method.adapt(support).predict(query)
    seeds, origins, ends = method.choose(support, support.labels)
    assert torch.equal(classes[origins], classes[ends])
    assert set(origins.flatten().tolist()) == set(range(6))
    for e in range(3):
        x, y = [*support.inputs[e].double()], support.labels[e].tolist()
        for c in range(4):
            assert int(is_used[e, c].sum()) == max(0, 4 - SHOTS[c])
            for j in torch.nonzero(is_used[e, c]).flatten().tolist():
                assert support.labels[e, seeds[e, c, j]] == c
                new = support.inputs[e, seeds[e, c, j]]
                new = new + centroids[ends[e, c, j]] - centroids[origins[e, c, j]]
                torch.testing.assert_close(made[e, c, j], new)
                x.append(new.double())
                y.append(c)
        # The mean cross-entropy with weight decay 0.001.
        judge = LogisticRegression(C=1 / (0.001 * len(y)), tol=1e-10, max_iter=100_000)
        judge.fit(torch.stack(x).numpy(), y)
        expected = judge.predict_proba(query[e].double().numpy())
        np.testing.assert_allclose(scores[e].softmax(-1), expected, atol=1e-3)


def test_seeds_of_hallucination_are_all_examples_of_the_class() -> None:
    method, _, _ = hallucinating(n_generated=60)
    support, _ = feature_episodes(n_episodes=1, shots=SHOTS)
    seeds, _, _ = method.choose(support, support.labels)
    for c in range(4):
        own = torch.nonzero(support.labels[0] == c).flatten().tolist()
        assert set(seeds[0, c].tolist()) == set(own)


def test_hallucination_trains_and_serves() -> None:
    torch.manual_seed(5)
    source = StripesSource()
    run = FakeRun(source, 40, images=40 * 32)
    backbone = SmallConv()
    learned = AnalogyTraining(n_clusters=3, lr=3e-3, batch_size=32).meta_train(
        backbone, source, run
    )
    torch.manual_seed(5)
    plain = FakeRun(source, 40, images=40 * 32)
    expected = Supervised(lr=3e-3, batch_size=32).meta_train(SmallConv(), source, plain)
    assert all(torch.equal(learned[k], v) for k, v in expected.items())
    assert learned["centroids"].shape == (8 * 3, backbone.n_features)
    assert bool(learned["generator.rectified"])
    method = FeatureHallucination()
    method.prepare(backbone.eval(), learned)
    hits = []
    for i in range(20):
        task = source.task("test", i)
        with torch.no_grad():
            known = Support(backbone(task.support.inputs), task.support.labels, 3, (i,))
            scores = method.adapt(known).predict(backbone(task.query))
        hits.append(scores.argmax(-1) == task.query_labels)
    assert torch.cat(hits).float().mean() > 0.65


def test_a_source_without_analogies_is_refused() -> None:
    with pytest.raises(ContractError, match="no analogies"):
        AnalogyTraining().fit(
            torch.rand(3, 4), torch.arange(3), nn.Linear(4, 3), torch.Generator(), True
        )
    with pytest.raises(ContractError, match="Meta-train it first"):
        FeatureHallucination().prepare(SmallConv(), {})
