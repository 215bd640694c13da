"""Pretraining followed by the training of a generator of features."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from medbench.api import Backbone, ContractError, NonFinite, Source, TrainingRun, derive_seed
from medbench_algorithms.augmentation.analogies import (
    AnalogyGenerator,
    analogy_loss,
    cluster,
    mine,
)
from medbench_algorithms.common.pretrain import Supervised
from medbench_algorithms.common.training import set_lr

_BATCH = 128
_LR = 1e-3
_MSE_WEIGHT = 10.0


@final
class AnalogyTraining:
    """Trains as `Supervised`, then teaches a generator the analogies between source classes.

    Hariharan and Girshick 2017, section 4.1: the features of each source class are clustered,
    pairs of centroids of one class are matched with pairs of another that differ alike, and the
    generator learns to complete them, in batches of 128, with a rate divided by 10 after each
    third. The optimiser is Adam at 1e-3: the authors' SGD at 0.1 is for their 512 features, and
    with 64, whose squared errors weigh eight times as much in the mean, it can push every output
    below its ReLU for good.

    The paper has 389 source classes, 100 clusters a class and about four passes over four million
    analogies. Here there are a handful of classes with fewer images: 30 clusters (a class with
    fewer images has as many clusters as images) keep the search for analogies in minutes, and 20
    passes make up for some of their small number. The generator sees features alone: it takes
    nothing of the budget of images.
    """

    def __init__(
        self,
        *,
        n_clusters: int = 30,
        generator_epochs: int = 20,
        lr: float = 1e-3,
        batch_size: int = 64,
    ) -> None:
        self.n_clusters = n_clusters
        self.generator_epochs = generator_epochs
        self.lr = lr
        self.batch_size = batch_size

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Adds ``generator.*``, ``centroids (m, d)`` and ``centroid_classes (m,)`` to the rest.

        Raises `ContractError` when the source has no analogies.
        """
        learned = Supervised(lr=self.lr, batch_size=self.batch_size).meta_train(
            backbone, source, run
        )
        best = run.best()
        classifier = nn.Linear(backbone.n_features, source.n_classes)
        classifier.load_state_dict({k: best[f"classifier.{k}"] for k in ("weight", "bias")})
        features, labels = _features(backbone, source)
        # A generator of its own: a run resumed after its last step has another global state.
        generator = torch.Generator().manual_seed(derive_seed("analogies", run.seed))
        centroids, classes = self._centroids(features, labels, generator)
        network = self.fit(
            centroids, classes, classifier.to(run.device), generator, features.min() >= 0
        )
        return {
            **learned,
            **{f"generator.{k}": v for k, v in network.state_dict().items()},
            "generator.rectified": torch.tensor(network.rectified),
            "centroids": centroids,
            "centroid_classes": classes,
        }

    def _centroids(
        self, features: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        parts, classes = [], []
        for c in torch.unique(labels):
            parts.append(cluster(features[labels == c], self.n_clusters, generator))
            classes.append(c.expand(len(parts[-1])))
        return torch.cat(parts), torch.cat(classes)

    def fit(
        self,
        centroids: Tensor,
        classes: Tensor,
        classifier: nn.Linear,
        generator: torch.Generator,
        rectified: bool | Tensor,
    ) -> AnalogyGenerator:
        """A generator trained on the analogies between centroids ``(m, d)`` of ``classes (m,)``."""
        quads = mine(centroids, classes)
        if not len(quads):
            raise ContractError(
                "feature-hallucination found no analogies: it needs two source classes with two "
                "different images each."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            network = AnalogyGenerator(centroids.shape[1], rectified=bool(rectified))
        with torch.no_grad():
            # A feature whose outputs all began below the last ReLU would never learn.
            network.last.bias.copy_(centroids.mean(0))
        network.to(centroids.device)
        adam = torch.optim.Adam(network.parameters(), lr=_LR)
        classifier.requires_grad_(requires_grad=False)
        quads = quads[torch.randperm(len(quads), generator=generator).to(quads.device)]
        batches = torch.split(quads, _BATCH)
        n_steps = self.generator_epochs * len(batches)
        for step in range(n_steps):
            set_lr(adam, _LR * 0.1 ** (3 * step // n_steps))
            a, b, c, d = batches[step % len(batches)].unbind(-1)
            made = network(centroids[a], centroids[c], centroids[d])
            loss = analogy_loss(made, centroids[b], classes[b], classifier, _MSE_WEIGHT)
            if not torch.isfinite(loss):
                raise NonFinite(f"The generator's loss is {loss.item()} at its step {step}.")
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
        return network


@torch.no_grad()
def _features(backbone: Backbone, source: Source) -> tuple[Tensor, Tensor]:
    backbone.eval()
    pairs = [(backbone(images), labels) for images, labels in source.sweep()]
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return features, labels
