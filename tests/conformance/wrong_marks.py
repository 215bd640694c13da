"""Methods for masks and for boxes that each break one promise, and keep all others."""

from __future__ import annotations

import copy
import gc
import os
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align

from medbench.api import Algorithm, Dataset, Detections, Detector, Predictor

# --- masks ---------------------------------------------------------------------------------------


def prototypes_of(maps: Tensor, masks: Tensor) -> Tensor:
    """Mean features ``(n_way + 1, c)``, the background's first."""
    cover = F.interpolate(masks.float(), size=maps.shape[-2:], mode="area")
    weights = torch.cat([1 - cover.amax(1, keepdim=True), cover], dim=1)
    sums = torch.einsum("nkhw,nchw->kc", weights, maps)
    return sums / weights.sum((0, 2, 3)).clamp_min(1e-6)[:, None]


class Places(Algorithm):
    """Right in every way: every place belongs to the nearest mean. The others change one thing."""

    def adapt(self, support):
        return Nearest(prototypes_of(support.inputs, support.masks), support.size)


class Nearest(Predictor):
    def __init__(self, means: Tensor, size, change=lambda scores: scores) -> None:
        self.means, self.size, self.change = means, size, change

    def predict(self, query):
        n, _, h, w = query.shape
        near = -torch.cdist(query.flatten(2).mT, self.means).square()
        near = near.mT.reshape(n, -1, h, w)
        rest = [[j for j in range(near.shape[1]) if j != k] for k in range(1, near.shape[1])]
        scores = torch.stack(
            [near[:, k] - near[:, j].amax(1) for k, j in enumerate(rest, 1)], dim=1
        )
        if self.size is not None:
            scores = F.interpolate(scores, size=self.size, mode="bilinear")
        return self.change(scores)


def places_that(change):
    """A method whose scores are changed; `change` gets the support set, and returns a function."""

    class Changing(Places):
        def adapt(self, support):
            means = prototypes_of(support.inputs, support.masks)
            return Nearest(means, support.size, change(support))

    return Changing


class AsLargeAsTheMap(Places):
    def adapt(self, support):
        return Nearest(prototypes_of(support.inputs, support.masks), None)


Binary = places_that(lambda s: lambda scores: scores > 0)
ClassesLast = places_that(lambda s: lambda scores: scores.movedim(1, -1))
Infinite = places_that(lambda s: lambda scores: scores / torch.zeros(()))
OneColumnForTwo = places_that(lambda s: lambda scores: scores[:, :1] if s.n_way == 2 else scores)
AtMostFive = places_that(lambda s: lambda scores: scores[:, :5])
Squeezes = places_that(lambda s: torch.squeeze)
Nothing = places_that(lambda s: lambda scores: -scores.abs() - 1e-3)
Everything = places_that(lambda s: lambda scores: scores.abs() + 1e-3)
Upside = places_that(lambda s: torch.neg)
Standardises = places_that(
    lambda s: lambda scores: scores / scores.std(dim=(-3, -2, -1), keepdim=True)
)
TrueRandom = places_that(
    lambda s: lambda scores: scores + int.from_bytes(os.urandom(2), "little") / 2**20
)
AmongOthers = places_that(lambda s: lambda scores: scores - 0.2 * scores.mean(0))


def _noise(support):
    noise = 1e-3 * torch.rand(())
    return lambda scores: scores + noise


GlobalRandom = places_that(_noise)


def _degrees_of_freedom(support):
    left = torch.tensor(float(len(support.inputs) - support.n_way))
    return lambda scores: scores * (1 / left)


PooledVariance = places_that(_degrees_of_freedom)


class Reshapes(Places):
    def adapt(self, support):
        n = len(support.masks) // support.n_way
        inputs, masks = (
            t.reshape(support.n_way, n, *t.shape[1:]).flatten(0, 1)
            for t in (support.inputs, support.masks)
        )
        return Nearest(prototypes_of(inputs, masks), support.size)


class CountsCalls(Places):
    def adapt(self, support):
        calls = []

        def change(scores):
            calls.append(1)
            return scores * len(calls)

        return Nearest(prototypes_of(support.inputs, support.masks), support.size, change)


class Remembers(Places):
    seen = 0

    def adapt(self, support):
        self.seen += 1
        factor = 1 + 0.01 * self.seen
        means = prototypes_of(support.inputs, support.masks)
        return Nearest(means, support.size, lambda scores: scores * factor)


def _first_is_likelier(support):
    bonus = 0.05 * support.inputs.var()
    return lambda scores: torch.cat([scores[:, :1] + bonus, scores[:, 1:]], dim=1)


PrefersFirst = places_that(_first_is_likelier)


class LastImageWins(Places):
    def adapt(self, support):
        n = len(support.inputs)
        kept = torch.cat([support.inputs, support.inputs[n - 2 :]])
        masks = torch.cat([support.masks, support.masks[n - 2 :]])
        return Nearest(prototypes_of(kept, masks), support.size)


class BatchedByMistake(Places):
    """Its dimension 0 is images, and with many episodes it is episodes."""

    def adapt(self, support):
        if support.inputs.ndim == 4:
            return super().adapt(support)
        together = replace(
            support, inputs=support.inputs.flatten(0, -4), masks=support.masks.flatten(0, -4)
        )
        one = super().adapt(together)

        class Many(Predictor):
            def predict(self, query):
                scores = one.predict(query.flatten(0, -4))
                return scores.reshape(*query.shape[:-3], *scores.shape[1:])

        return Many()


class CountsAdapted(Places):
    def adapt(self, support):
        found = super().adapt(support)
        found.n_adapted = found.means.numel()
        return found


def _by_place(support):
    scale = support.inputs.var() + 1e-6

    def change(scores):
        n, way = scores.shape[:2]
        bonus = F.one_hot(torch.arange(n) * way // n, way).float()
        return scores + 0.5 * scale * bonus[..., None, None]

    return change


ReadsOrder = places_that(_by_place)


class FillsMasks(Places):
    def adapt(self, support):
        found = super().adapt(support)
        support.masks[:, :, 0, 0] = True
        return found


class MovesStatistics(Algorithm):
    """On images, with the network that it was given in training mode."""

    def prepare(self, backbone, learned):
        self.backbone, self.copy = backbone, copy.deepcopy(backbone).eval()

    def adapt(self, support):
        self.backbone.train()
        self.backbone.feature_map(support.inputs)
        self.backbone.eval()
        network = self.copy
        with torch.no_grad():
            maps = network.feature_map(support.inputs)
        means = prototypes_of(maps, support.masks)

        class Embedded(Nearest):
            def predict(self, query):
                with torch.no_grad():
                    return super().predict(network.feature_map(query))

        return Embedded(means, support.size)


def _up_the_stack(name):
    frame = sys._getframe()
    while frame is not None:
        if frame.f_locals.get(name) is not None and "bench" in frame.f_locals:
            return frame.f_locals[name]
        frame = frame.f_back
    return None


def _in_memory(indices):
    """What a data set that lies about gives, asked without looking at the stack."""
    here = [o for o in gc.get_objects() if Dataset in type(o).__mro__]
    own = [o for o in here if "read_masks" in vars(o)]
    return own[0].read_masks(indices) if own else None


def _knows(find):
    class Knowing(Places):
        def adapt(self, support):
            def change(scores):
                truth = find(len(scores))
                if truth is None or len(truth) != len(scores):
                    return scores
                return scores + 1e3 * torch.from_numpy(truth).float()

            return Nearest(prototypes_of(support.inputs, support.masks), support.size, change)

    return Knowing


WalksFrames = _knows(lambda n: _up_the_stack("query_masks") if n >= 40 else None)
FindsDataset = _knows(lambda n: _in_memory(np.arange(n)) if n >= 40 else None)

# --- boxes ---------------------------------------------------------------------------------------


class Windows(Algorithm):
    """Right in every way: windows whose mean feature is nearest. The others change one thing."""

    def adapt(self, support):
        return Slides(*windows_of(support))


def windows_of(support):
    """Mean features and sizes of each class's boxes, in places of the map, and what a place is."""
    maps = support.inputs
    step = support.size[0] / maps.shape[-1]
    means, sizes = [], []
    for k in range(support.n_way):
        own = [torch.from_numpy(b.xyxy[b.labels == k]).float() / step for b in support.boxes]
        every = torch.cat(own)
        means.append(pooled(maps, own).mean(0))
        sizes.append((every[:, 2:] - every[:, :2]).mean(0))
    return torch.stack(means), torch.stack(sizes), step


def pooled(maps, boxes):
    return roi_align(maps, boxes, 3, sampling_ratio=2, aligned=True).flatten(1)


def every_window(size, h, w):
    ys, xs = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    centres = torch.stack([xs, ys], -1).reshape(-1, 2)
    return torch.cat([centres - size / 2, centres + size / 2], dim=1)


class Slides(Detector):
    def __init__(self, means, sizes, step, change=lambda found: found) -> None:
        self.means, self.sizes, self.step, self.change = means, sizes, step, change

    def predict(self, query):
        return self.change([self.one(image[None]) for image in query])

    def one(self, image):
        parts = []
        for k, (mean, size) in enumerate(zip(self.means, self.sizes, strict=True)):
            boxes = every_window(size, *image.shape[-2:])
            scores = -(pooled(image, [boxes]) - mean).square().sum(1)
            kept = nms(boxes, scores, 0.3)[:3]
            parts.append((boxes[kept], torch.full((len(kept),), k), scores[kept]))
        boxes, labels, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        return Detections(
            (self.step * boxes).double().numpy(), labels.numpy(), scores.double().numpy()
        )


def windows_that(change):
    """A method whose boxes are changed; `change` gets the support set, and returns a function."""

    class Changing(Windows):
        def adapt(self, support):
            return Slides(*windows_of(support), change(support))

    return Changing


def each(change):
    """As `windows_that`, image by image: `change` gets and returns a `Detections`."""
    return windows_that(lambda s: lambda found: [change(one, s) for one in found])


AsTensors = windows_that(lambda s: lambda found: [torch.from_numpy(one.xyxy) for one in found])
OneForAll = windows_that(lambda s: lambda found: found[:1])
FirstAlone = windows_that(lambda s: lambda found: found if len(found) > 1 else found[0])
FromOne = each(lambda one, s: replace(one, labels=one.labels + 1))
RowsFirst = each(lambda one, s: replace(one, xyxy=one.xyxy[:, [2, 3, 0, 1]]))
NotANumber = each(lambda one, s: replace(one, scores=one.scores * np.nan))
Shares = each(lambda one, s: replace(one, xyxy=one.xyxy / s.size[0]))
InPlaces = each(lambda one, s: replace(one, xyxy=one.xyxy / 4))
WorstFirst = each(lambda one, s: replace(one, scores=-one.scores))
Silent = each(lambda one, s: Detections(one.xyxy[:0], one.labels[:0], one.scores[:0]))
NoisyScores = each(
    lambda one, s: replace(one, scores=one.scores + int.from_bytes(os.urandom(2), "little"))
)


def _surer(support):
    noise = float(torch.rand(()))
    return lambda found: [replace(one, scores=one.scores + noise) for one in found]


GlobalBoxes = windows_that(_surer)


def _likelier(one, support):
    bonus = np.where(one.labels == 0, 0.2 * (np.ptp(one.scores) + 1e-6), 0.0)
    return replace(one, scores=one.scores + bonus)


FirstIsLikelier = each(_likelier)


def _best_of_all(found):
    every = np.concatenate([one.scores for one in found])
    floor = np.median(every)
    return [
        Detections(one.xyxy[kept], one.labels[kept], one.scores[kept])
        for one in found
        for kept in [one.scores >= floor]
    ]


BestOfAllQueries = windows_that(lambda s: _best_of_all)


def _labels_by_place(found):
    n = len(found)
    return [
        replace(one, scores=one.scores + 1e3 * (one.labels == 3 * i // n))
        for i, one in enumerate(found)
    ]


BoxesByOrder = windows_that(lambda s: _labels_by_place)


class CountsBoxCalls(Windows):
    def adapt(self, support):
        calls = []

        def change(found):
            calls.append(1)
            return [replace(one, scores=one.scores * len(calls)) for one in found]

        return Slides(*windows_of(support), change)


class RemembersBoxes(Windows):
    seen = 0

    def adapt(self, support):
        self.seen += 1
        factor = 1 + 0.01 * self.seen
        return Slides(
            *windows_of(support),
            lambda found: [replace(one, scores=one.scores * factor) for one in found],
        )


class LastBoxWins(Windows):
    def adapt(self, support):
        means, sizes, step = windows_of(support)
        last = replace(support, inputs=support.inputs[-1:], boxes=support.boxes[-1:])
        shown = sorted(set(last.boxes[0].labels.tolist()))
        own = windows_of(last)[0]
        for k in shown:
            means[k] = 0.7 * means[k] + 0.3 * own[k]
        return Slides(means, sizes, step)


class ScalesBoxes(Windows):
    def adapt(self, support):
        found = super().adapt(support)
        for boxes in support.boxes:
            np.multiply(boxes.xyxy, 0.5, out=boxes.xyxy)
        return found


def _spread(one, support):
    left = np.float64(len(support.inputs) - support.n_way)
    with np.errstate(divide="ignore", invalid="ignore"):
        return replace(one, scores=one.scores * (1 / left))


PooledSpread = each(_spread)


class KnowsBoxes(Windows):
    def adapt(self, support):
        def change(found):
            truth = _up_the_stack("query_boxes") if len(found) >= 40 else None
            if truth is None:
                return found
            return [Detections(b.xyxy, b.labels, np.ones(len(b.labels))) for b in truth]

        return Slides(*windows_of(support), change)


class NoDetector(Windows):
    def adapt(self, support):
        return Nearest(torch.zeros(support.n_way + 1, support.inputs.shape[1]), support.size)
