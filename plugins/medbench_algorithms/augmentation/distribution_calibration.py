"""Distribution Calibration (Yang, Liu and Xu, "Free Lunch for Few-shot Learning", ICLR 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Support
from medbench_algorithms.augmentation.tukey import OfPowers, tukey
from medbench_algorithms.common.geometry import class_masks, squared_distances
from medbench_algorithms.common.linear import LinearPredictor, one_hot
from medbench_algorithms.common.primal_logistic import solve_primal

# Numbers drawn at once for one block of episodes: 64 MB of float64.
_BLOCK = 1 << 23


class BaseClasses(NamedTuple):
    """Gaussians of the source classes: means ``(c, d)``, and roots ``(c, d, d)`` of covariances."""

    means: Tensor
    roots: Tensor


def covariance_roots(covariances: Tensor) -> Tensor:
    """R with ``R R^T`` the covariance, ``(c, d, d)`` float64; singular ones are welcome."""
    values, vectors = torch.linalg.eigh(covariances.double())
    roots: Tensor = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    return roots


@final
class DistributionCalibration(Algorithm):
    """Draws features around each support example, with the spread of source classes near it.

    Support and query features are raised to ``power`` (Eq. 3). The k source classes whose means
    are nearest to a support example (Eq. 5) give it a Gaussian: its mean is that of their means
    and the example, its covariance the mean of theirs plus alpha in every entry (Eq. 6). From it
    750 / shot features are drawn, and logistic regression is fitted to them and the support
    (Algorithm 1). Statistics of source classes are of features as they are, without the power, as
    in the paper and its code.

    Features below zero, which the paper's networks do not have, keep their sign under the power.
    A sum of independent draws from the k classes' own Gaussians, divided by the root of k, and of
    one draw that all entries share has just that covariance: no matrix is factorised in an
    episode. Logistic regression is scikit-learn's with its default C = 1, solved to convergence.
    The backbone and the statistics come from the shared `Supervised` trainer.
    """

    def __init__(
        self,
        *,
        power: float = 0.5,
        k: int = 2,
        alpha: float = 0.21,
        n_sampled: int = 750,
        C: float = 1.0,
    ) -> None:
        self.power = power
        self.k = k
        self.alpha = alpha
        self.n_sampled = n_sampled
        self.C = C
        self._base: BaseClasses | None = None

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the source classes' statistics. Raises `ContractError` when there are none."""
        missing = {"base_means", "base_covariances"} - learned.keys()
        if missing:
            raise ContractError(
                f"distribution-calibration needs {' and '.join(sorted(missing))} from training. "
                "Covariances are left out where those of all source classes would take over "
                "64 MB: choose a backbone with fewer features (conv4 on small images has 64)."
            )
        self._base = BaseClasses(
            learned["base_means"].double(), covariance_roots(learned["base_covariances"])
        )

    def adapt(self, support: Support) -> Predictor:
        """Fit one classifier an episode on support features ``(..., n_support, d)``."""
        if self._base is None:
            raise ContractError("DistributionCalibration.adapt was called before prepare.")
        lead, (n, d) = support.inputs.shape[:-2], support.inputs.shape[-2:]
        x = tukey(support.inputs.reshape(-1, n, d).double(), self.power)
        labels = support.labels.reshape(-1, n)
        counts = self.counts(labels, support.n_way)
        centre = x.new_zeros(len(x), 1, d)
        weight = x.new_zeros(len(x), support.n_way, d)
        bias = x.new_zeros(len(x), support.n_way)
        totals = counts.sum(-1)
        for total in torch.unique(totals).tolist():
            alike = torch.nonzero(totals == total).squeeze(-1)
            for rows in torch.split(alike, max(1, _BLOCK // (max(total, 1) * (self.k * d + 1)))):
                sampled, of = self.sample(support, rows, x[rows], counts[rows])
                everything = torch.cat([x[rows], sampled], 1)
                targets = one_hot(labels[rows], support.n_way)
                targets = torch.cat([targets, targets.take_along_dim(of.unsqueeze(-1), 1)], 1)
                centre[rows] = everything.mean(1, keepdim=True)
                # Two classes have one weight vector in scikit-learn: see `LinearProbe`.
                C = self.C / 2 if support.n_way == 2 else self.C
                weight[rows], bias[rows] = solve_primal(everything - centre[rows], targets, C)
        head = LinearPredictor(
            weight.reshape(*lead, support.n_way, d),
            bias.reshape(*lead, support.n_way),
            centre.reshape(*lead, 1, d),
        )
        return OfPowers(head, self.power)

    def counts(self, labels: Tensor, n_way: int) -> Tensor:
        """How many features each support example gets, ``(e, n)``: 750 / the shots of its class."""
        shots = class_masks(labels, n_way).sum(-1)
        return self.n_sampled // shots.gather(-1, labels)

    def calibrate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(e, n, d)``, nearest source classes ``(e, n, k)`` of examples ``(e, n, d)``."""
        assert self._base is not None
        means = self._base.means
        k = min(self.k, len(means))
        nearest = squared_distances(x, means).topk(k, largest=False).indices
        return (means[nearest].sum(-2) + x) / (k + 1), nearest

    def sample(
        self, support: Support, rows: Tensor, x: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features ``(e, m, d)`` drawn for the episodes `rows`, and their examples ``(e, m)``.

        `x` and `counts` are the examples ``(e, n, d)`` of these episodes, to the power, and how
        many features each gets; the sum m is the same for all of them.
        """
        assert self._base is not None
        means, nearest = self.calibrate(x)
        k, d = nearest.shape[-1], x.shape[-1]
        positions = torch.arange(x.shape[1], device=x.device)
        of = torch.stack([positions.repeat_interleave(c) for c in counts])
        draws = [
            torch.randn(of.shape[1], k * d + 1, generator=support.generator(row))
            for row in rows.tolist()
        ]
        z = torch.stack(draws).to(x.device).double()
        sampled = means.take_along_dim(of.unsqueeze(-1), 1)
        sampled = sampled + self.alpha**0.5 * z[..., -1:]
        own = z[..., :-1].reshape(*of.shape, k, d)
        classes = nearest.take_along_dim(of.unsqueeze(-1), 1)
        flat = sampled.reshape(-1, d)
        for c in torch.unique(classes).tolist():
            # Row by row of (example, neighbour): where class c is that neighbour.
            where = torch.nonzero(classes.reshape(-1, k) == c)
            noise = own.reshape(-1, k, d)[where[:, 0], where[:, 1]] @ self._base.roots[c].mT
            flat = flat.index_add(0, where[:, 0], noise / k**0.5)
        return flat.reshape(sampled.shape), of
