"""An algorithm made ready for episodes: network, short meta-training, fresh prepared instances."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, Detector, Predictor, Support, derive_seed
from medbench.backbones import build_backbone, load_weights
from medbench.config import BackboneRef
from medbench.conformance import material
from medbench.conformance.check import Broken, in_words
from medbench.conformance.forms import Form, form_of
from medbench.conformance.guards import seeded
from medbench.conformance.material import Episode
from medbench.conformance.subject import Subject
from medbench.plugins import load_factory

SHORT = 6
# Where a short training leaves an algorithm at chance, it is trained again for longer.
LONGER = (60, 300)


@dataclass
class Bench:
    """What the checks of one algorithm share. Everything random in it comes from seeds."""

    subject: Subject
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _learned: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    _network: Backbone | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    """What several checks look at and one of them makes."""

    def __post_init__(self) -> None:
        self.form: Form[Any] = form_of(self.subject.task_kind)

    @property
    def traits(self) -> Any:
        """The traits that the spec declares."""
        return self.subject.spec.traits

    @property
    def transductive(self) -> bool:
        """Whether it is declared to look at the whole query set, with these parameters."""
        return bool(self.traits.is_transductive(self.subject.params))

    def make(self) -> Algorithm:
        """A new instance from the factory. Raises `Broken` when it is none of an `Algorithm`."""
        params, spec = dict(self.subject.params), self.subject.spec
        if spec.trainer:
            stages = {p.name: p.stage for p in spec.parameters}
            params = {k: v for k, v in params.items() if stages[k] != "train"}
        found = call(load_factory(self.subject.entry), params, spec.factory)
        if not isinstance(found, Algorithm):
            raise Broken(
                f"the factory {spec.factory} returned {type(found).__name__}, and a "
                "medbench.api.Algorithm is needed."
            )
        return found

    def trainer(self) -> Any:
        """Whatever has the `meta_train`: the trainer that the spec names, or the algorithm."""
        spec = self.subject.spec
        if not spec.trainer:
            return self.make()
        stages = {p.name: p.stage for p in spec.parameters}
        params = {k: v for k, v in self.subject.params.items() if stages[k] != "adapt"}
        return call(load_factory(self.subject.entry, spec.trainer), params, spec.trainer)

    def network(self) -> Backbone:
        """The network before any training, in eval mode; a new copy at each call."""
        if self._network is None:
            wants = self.subject.spec.conformance
            self._network = build_backbone(
                self.subject.registry,
                BackboneRef(name=wants.backbone, params=dict(wants.backbone_params)),
                image_size=wants.image_size or self.form.image_size,
                channels=1,
                seed=0,
            )
        return copy.deepcopy(self._network)

    def train(self, n_tasks: int = SHORT, seed: int = 0) -> dict[str, Tensor]:
        """What a meta-training leaves; nothing without the trait. It is always run anew."""
        if not self.traits.meta_trains:
            return {}
        backbone = self.network()
        params = dict(self.subject.params)
        tasks = material.source(self.form.dataset(), backbone, params, seed)
        assert [c for _, c in tasks.classes] == list(range(self.form.n_classes))
        run = material.training(tasks, n_tasks, seed)
        with seeded(derive_seed("meta-train", seed)):
            learned = self.trainer().meta_train(backbone, tasks, run)
        if not isinstance(learned, Mapping) or not all(
            isinstance(v, Tensor) for v in learned.values()
        ):
            raise Broken(
                f"meta_train returned {type(learned).__name__}, and named tensors are needed "
                "(what run.best() gives)."
            )
        return {k: v.detach().clone() for k, v in learned.items()}

    def learned(self, n_tasks: int = SHORT) -> dict[str, Tensor]:
        """What a meta-training of `n_tasks` tasks left, run once."""
        if (n_tasks, 0) not in self._learned:
            self._learned[n_tasks, 0] = self.train(n_tasks)
        return self._learned[n_tasks, 0]

    def prepared(
        self, n_tasks: int = SHORT, learned: Mapping[str, Tensor] | None = None
    ) -> tuple[Algorithm, Backbone]:
        """A new instance with a network of its own, as a cell would prepare them."""
        learned = self.learned(n_tasks) if learned is None else learned
        backbone = self.network()
        own = {k: v for k, v in learned.items() if k.startswith("backbone.")}
        if own:
            load_weights(backbone, own, "meta_train")
        backbone.to(self.device).eval()
        rest = {
            k: v.clone().to(self.device)
            for k, v in learned.items()
            if not k.startswith("backbone.")
        }
        with seeded():
            algorithm = self.make()
            algorithm.prepare(backbone, rest)
        return algorithm, backbone

    def given(self, episode: Episode, backbone: Backbone) -> tuple[Support, Tensor]:
        """Support set and queries of an episode, in the form the algorithm works on."""
        support, query = self.form.given(episode, backbone, self.traits.works_on, self.device)
        if self.traits.knows_classes:
            # Trainings see all classes here, and number them as the data set does.
            support = replace(support, classes=episode.classes.to(self.device))
        return support, query

    def adapted(self, algorithm: Algorithm, support: Support) -> Predictor | Detector:
        """What adapting returns. Raises `Broken` where that is not what it must be."""
        return self.form.adapted(algorithm.adapt(support))

    def answer(self, predictor: Predictor | Detector, query: Tensor, support: Support) -> Any:
        """What predicting returns, free of its history. Raises `Broken` for another type."""
        return self.form.answer(predictor.predict(query), support)

    def scores(
        self,
        episode: Episode,
        ready: tuple[Algorithm, Backbone] | None = None,
        global_seed: int = 0,
    ) -> Any:
        """The answer to an episode's queries from a new instance, or from `ready`.

        Raises `Broken` for what is no predictor, or no answer.
        """
        algorithm, backbone = ready or self.prepared()
        support, query = self.given(episode, backbone)
        with seeded(global_seed):
            return self.answer(self.adapted(algorithm, support), query, support)

    def answers(self, episodes: list[Episode], n_tasks: int) -> list[Any]:
        """Answers to many episodes of one shape, after a training on `n_tasks` tasks."""
        ready = self.prepared(n_tasks)
        if not self.traits.batched:
            return [self.scores(one, ready) for one in episodes]
        # Many iterative methods take as long for all episodes as for one.
        support, query = material.together([self.given(one, ready[1]) for one in episodes])
        with seeded():
            return list(self.answer(self.adapted(ready[0], support), query, support))


def call(factory: Callable[..., Any], params: Mapping[str, Any], path: str) -> Any:
    """What a factory makes of the spec's parameters. Raises `Broken` when it does not take them."""
    try:
        return factory(**params)
    except TypeError as error:
        if "abstract method" in str(error):
            raise Broken(
                f"{path} is not complete: {error}.",
                "Write the methods that the base class asks for, by these names.",
            ) from error
        raise Broken(
            f"{path} does not take the parameters of its spec ({', '.join(params) or 'none'}): "
            f"{in_words(error)}"
        ) from error
