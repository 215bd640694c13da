"""LEO, Latent Embedding Optimization (Rusu et al., ICLR 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.linear import LinearPredictor
from medbench_algorithms.optimisation.clipping import clip_gradients
from medbench_algorithms.optimisation.latent import LatentHeads, Sampled
from medbench_algorithms.optimisation.noise import normals

# The authors' code clips gradients number by number, then by their norm.
_CLIP = 0.1


@final
class LEO(Episodic[LatentHeads]):
    """Learns a small latent space of classifiers, and takes gradient steps there.

    Encoder and relation network turn the support set into a latent code for each class, a linear
    decoder turns codes into weights; ``inner_steps`` gradient steps change the codes, then
    ``finetuning_steps`` the weights, at learned rates (Algorithm 1; see `LatentHeads`). Features
    are scaled to length one and the backbone is frozen: it is trained first, as a classifier of
    all source classes, for ``pretrain_share`` of the budget (the paper's are pre-trained too).
    Training draws codes and weights; a test takes their means, as the authors' code does.

    The loss adds ``kl_weight`` (beta) times the divergence of codes from a standard normal,
    ``encoder_penalty`` (gamma) times the squared distance of the first codes from the last, an L2
    penalty (lambda 1) and ``orthogonality_penalty`` (lambda 2) times that of the decoder's rows.
    The authors tuned these for each data set. The defaults are those of their code's
    configuration, but for dropout (0.5 there) and orthogonality (0.001 there), which are nearer
    to what they report for 1-shot miniImageNet, and for Adam's rate (1e-4 there).

    Departures: one episode a step instead of twelve; one draw for each class, as the paper writes
    it, where the code draws one for each support image and averages their scores.
    """

    freezes_backbone: ClassVar[bool] = True

    def __init__(
        self,
        *,
        latents: int = 64,
        inner_steps: int = 5,
        finetuning_steps: int = 5,
        inner_lr: float = 1.0,
        finetuning_lr: float = 0.001,
        dropout: float = 0.3,
        kl_weight: float = 0.001,
        encoder_penalty: float = 1e-9,
        l2_penalty: float = 1e-8,
        orthogonality_penalty: float = 0.1,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.5,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.latents = latents
        self.inner_steps = inner_steps
        self.finetuning_steps = finetuning_steps
        self.inner_lr = inner_lr
        self.finetuning_lr = finetuning_lr
        self.dropout = dropout
        self.kl_weight = kl_weight
        self.encoder_penalty = encoder_penalty
        self.l2_penalty = l2_penalty
        self.orthogonality_penalty = orthogonality_penalty

    def build(self, backbone: Backbone) -> LatentHeads:
        """Encoder, relation network, decoder and learning rates."""
        return LatentHeads(
            backbone.n_features, self.latents, self.inner_lr, self.finetuning_lr, self.dropout
        )

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the learned head, in float64: its steps are long."""
        super().prepare(backbone, learned)
        if self._head is not None:
            self._head.double()

    def optimiser(self, head: LatentHeads, learned: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam on clipped gradients; those of the backbone's pretraining are left alone."""
        found = super().optimiser(head, learned)
        clip_gradients(found, head.parameters(), norm=_CLIP, value=_CLIP)
        return found

    def predictor(self, head: LatentHeads, support: Support) -> LinearPredictor:
        """Adapt to support features ``(..., n_support, d)``."""
        weight = self._adapt(head, support).weight
        found = LinearPredictor(weight, weight.new_zeros(weight.shape[:-1]), unit_length=True)
        found.n_adapted = math.prod(weight.shape[-2:])  # there is no bias
        return found

    def loss(
        self, head: LatentHeads, support: Support, query: Tensor, query_labels: Tensor
    ) -> Tensor:
        """The queries' cross-entropy and the penalties."""
        found = self._adapt(head, support)
        scores = head.scores(F.normalize(query, dim=-1), found.weight)
        return (
            F.cross_entropy(scores, query_labels)
            + self.kl_weight * found.divergence
            + self.encoder_penalty * found.moved
            + self.l2_penalty * head.squared_size() / 2
            + self.orthogonality_penalty * head.correlation()
        )

    def _adapt(self, head: LatentHeads, support: Support) -> Sampled:
        x = F.normalize(support.inputs, dim=-1).to(head.inner_lr.dtype)
        n_way, d = support.n_way, x.shape[-1]
        latent_noise = weight_noise = None
        if head.training:
            n = (self.inner_steps + 1) * d
            noise = normals(support, n_way, self.latents + n).to(x.dtype)
            latent_noise = noise[..., : self.latents]
            weight_noise = (
                noise[..., self.latents :].reshape(*noise.shape[:-1], -1, d).movedim(-2, 0)
            )
        return head.adapt(
            x,
            support.labels,
            n_way,
            self.inner_steps,
            self.finetuning_steps,
            latent_noise,
            weight_noise,
        )
