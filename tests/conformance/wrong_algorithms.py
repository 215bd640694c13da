"""Algorithms that each break one promise, and keep all others."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import socket
import sys
from pathlib import Path

import torch
from torch import Tensor

from medbench.api import Algorithm, Dataset, Predictor


class Means(Predictor):
    def __init__(self, means: Tensor, n_adapted: int = 0) -> None:
        self.means, self.n_adapted = means, n_adapted

    def predict(self, query: Tensor) -> Tensor:
        return -torch.cdist(query, self.means).square()


def means_of(support) -> Tensor:
    one_hot = torch.nn.functional.one_hot(support.labels, support.n_way).to(support.inputs.dtype)
    return one_hot.transpose(-1, -2) @ support.inputs / one_hot.sum(-2).unsqueeze(-1)


class Mean(Algorithm):
    """Right in every way; the others change one thing."""

    def adapt(self, support):
        return Means(means_of(support))


class Changed(Predictor):
    """The right scores after a change."""

    def __init__(self, means: Tensor, change) -> None:
        self.means, self.change = means, change

    def predict(self, query):
        return self.change(-torch.cdist(query, self.means).square())


# --- factories and trainings ---


class Choosy(Mean):
    def __init__(self, distance: str) -> None:
        if distance == "l1":
            raise KeyError(distance)


def make_nothing():
    return "an algorithm"


class SecretTraining(Mean):
    def meta_train(self, backbone, source, run):
        return {}


class Trained(Mean):
    """A training that learns a scale, by whatever rule `scale` gives."""

    def meta_train(self, backbone, source, run):
        self.scale = torch.ones(())
        for _ in run.steps({"scale": self.scale}, images_per_step=source.images_per_task):
            self.scale += self.step()
            run.log(1.0)
        return run.best()

    def step(self) -> Tensor:
        return torch.rand(())

    def prepare(self, backbone, learned):
        self.scale = learned["scale"]

    def adapt(self, support):
        return Changed(means_of(support), lambda scores: scores * self.scale)


class LearnsNothing(Trained):
    def meta_train(self, backbone, source, run):
        super().meta_train(backbone, source, run)
        return [self.scale]


class ForgetsToLog(Trained):
    def meta_train(self, backbone, source, run):
        for _ in run.steps({"backbone": backbone}, images_per_step=source.images_per_task):
            pass
        return run.best()


class UnseededTraining(Trained):
    def step(self):
        return torch.tensor(int.from_bytes(os.urandom(2), "little") / 2**16)


_KEPT: dict[str, Tensor] = {}


class KeepsInModule(Trained):
    def meta_train(self, backbone, source, run):
        learned = super().meta_train(backbone, source, run)
        _KEPT.update(learned)
        return {}

    def prepare(self, backbone, learned):
        self.scale = _KEPT.get("scale", torch.ones(()))


# --- shapes ---


class Transposed(Mean):
    def adapt(self, support):
        return Changed(means_of(support), lambda scores: scores.mT)


class NoPredictor(Mean):
    def adapt(self, support):
        return means_of(support)


class Whole(Mean):
    def adapt(self, support):
        return Changed(means_of(support), lambda scores: scores.long())


class Crashes(Mean):
    def adapt(self, support):
        return Means(support.no_such_attribute)


class ZeroByZero(Mean):
    def adapt(self, support):
        return Changed(means_of(support), lambda scores: scores * (torch.zeros(()) / 0))


class Cosine(Mean):
    def adapt(self, support):
        means = means_of(support)
        means = means / means.norm(dim=-1, keepdim=True)

        class Unguarded(Predictor):
            def predict(self, query):
                return query / query.norm(dim=-1, keepdim=True) @ means.mT

        return Unguarded()


class PooledVariance(Mean):
    def adapt(self, support):
        means = means_of(support)
        within = (support.inputs - means[support.labels]).square().sum()
        variance = within / (len(support.labels) - support.n_way)
        return Changed(means, lambda scores: scores / (variance + 1e-6))


class Binary(Mean):
    def adapt(self, support):
        def change(scores):
            return scores[:, 1:] - scores[:, :1] if support.n_way == 2 else scores

        return Changed(means_of(support), change)


class Reshapes(Mean):
    def adapt(self, support):
        order = torch.argsort(support.labels, stable=True)
        return Means(
            support.inputs[order].reshape(support.n_way, -1, support.inputs.shape[-1]).mean(1)
        )


class Squeezes(Mean):
    def adapt(self, support):
        return Changed(means_of(support), torch.squeeze)


class AtMostFive(Mean):
    def adapt(self, support):
        return Means(means_of(support)[:5])


class Counts(Mean):
    def adapt(self, support):
        return Means(means_of(support), n_adapted=3)


# --- what scores depend on ---


class TrueRandom(Mean):
    def adapt(self, support):
        noise = int.from_bytes(os.urandom(4), "little") / 2**32
        return Changed(means_of(support), lambda scores: scores + noise)


class GlobalRandom(Mean):
    def adapt(self, support):
        noise = torch.rand(())
        return Changed(means_of(support), lambda scores: scores + noise)


class CountsCalls(Mean):
    def adapt(self, support):
        class Counting(Means):
            calls = 0

            def predict(self, query):
                self.calls += 1
                return super().predict(query) + self.calls

        return Counting(means_of(support))


class Remembers(Mean):
    last: Tensor | None = None

    def adapt(self, support):
        means = means_of(support)
        shift = 0.01 * self.last if self.last is not None else 0.0
        self.last = means.mean()
        return Changed(means, lambda scores: scores * (1 + shift))


class PrefersFirst(Mean):
    def adapt(self, support):
        means = means_of(support)
        bonus = torch.zeros(support.n_way)
        bonus[0] = 0.05 * torch.cdist(means, means).max().square()
        return Changed(means, lambda scores: scores + bonus)


class LastImageWins(Mean):
    def adapt(self, support):
        weight = torch.linspace(0.5, 1.0, len(support.labels))
        one_hot = torch.nn.functional.one_hot(support.labels, support.n_way) * weight[:, None]
        return Means(one_hot.T @ support.inputs / one_hot.sum(0)[:, None])


class Centres(Mean):
    def adapt(self, support):
        means = means_of(support)

        class Centred(Predictor):
            def predict(self, query):
                return -torch.cdist(query - 0.1 * query.mean(0), means).square()

        return Centred()


class ScalesByAll(Mean):
    def adapt(self, support):
        scale = support.inputs.std() + 1e-6
        return Changed(means_of(support), lambda scores: scores / scale)


class CountsAll(Mean):
    def adapt(self, support):
        means = means_of(support)
        return Means(means, n_adapted=means.numel())


class OneEpisode(Mean):
    def adapt(self, support):
        one_hot = torch.nn.functional.one_hot(support.labels, support.n_way).float()
        return Means(one_hot.T @ support.inputs / one_hot.sum(0)[:, None])


# --- learning ---


class Guesses(Mean):
    def adapt(self, support):
        return Changed(means_of(support), torch.zeros_like)


class Upside(Mean):
    def adapt(self, support):
        return Changed(means_of(support), torch.neg)


class ReadsOrder(Mean):
    def adapt(self, support):
        scale = support.inputs.var(0).sum() + 1e-6

        def change(scores):
            n, way = scores.shape
            place = torch.arange(n) * way // n
            return scores / scale + 0.5 * torch.nn.functional.one_hot(place, way)

        return Changed(means_of(support), change)


# --- what they leave alone ---


class InPlace(Mean):
    def adapt(self, support):
        support.inputs.mul_(0.5)
        return Changed(2 * means_of(support), lambda scores: scores)


class OnImages(Mean):
    """Works on images with a copy of the network; subclasses touch the one that was given."""

    def prepare(self, backbone, learned):
        self.backbone, self.copy = backbone, copy.deepcopy(backbone).eval()

    def adapt(self, support):
        self.touch(support)
        network = self.copy
        with torch.no_grad():
            features = network(support.inputs)
        means = means_of(type(support)(features, support.labels, support.n_way, support.seeds))

        class Embedded(Means):
            def predict(self, query):
                with torch.no_grad():
                    return super().predict(network(query))

        return Embedded(means)


class MovesStatistics(OnImages):
    def touch(self, support):
        self.backbone.train()
        self.backbone(support.inputs)
        self.backbone.eval()


class LeavesHook(OnImages):
    def touch(self, support):
        self.backbone.register_forward_hook(lambda *_: None)


class Cheats(Mean):
    """Right answers where they can be found, and honest ones elsewhere."""

    def adapt(self, support):
        cheat = self

        class Knowing(Means):
            def predict(self, query):
                honest = super().predict(query)
                found = cheat.look() if len(query) >= 40 else None
                if found is None or len(found) != len(query):
                    return honest
                found = torch.as_tensor(found)
                return honest + 1e6 * torch.nn.functional.one_hot(found, honest.shape[-1])

        return Knowing(means_of(support))


def _search(frame):
    while frame is not None:
        if "query_labels" in frame.f_locals:
            return frame.f_locals["query_labels"]
        frame = frame.f_back
    return None


class WalksFrames(Cheats):
    def look(self):
        return _search(sys._getframe())


class WalksTraceback(Cheats):
    def look(self):
        try:
            raise ValueError
        except ValueError as error:
            return _search(error.__traceback__.tb_frame)


class AsksInspect(Cheats):
    def look(self):
        return _search(inspect.currentframe())


class FindsDataset(Cheats):
    def look(self):
        # Through the order of inheritance: asking an abstract class about each is slow.
        here = [o for o in gc.get_objects() if Dataset in type(o).__mro__]
        found = [o for o in here if len(o.labels) == 40]
        return found[0].labels if found else None


class CallsHome(Mean):
    def prepare(self, backbone, learned):
        try:
            socket.create_connection(("192.0.2.1", 443), timeout=0.01).close()
        except OSError:
            return


class Logs(Mean):
    def adapt(self, support):
        Path("adapted.log").write_text("an episode")
        return super().adapt(support)


class SavesQuietly(Mean):
    def adapt(self, support):
        # torch's own writer opens files without telling Python.
        torch._C.PyTorchFileWriter("weights.pt").write_end_of_file()
        return super().adapt(support)


class OnTheCpu(Mean):
    def adapt(self, support):
        return Changed(means_of(support), lambda scores: scores.cpu())
