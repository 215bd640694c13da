"""Checks of algorithms: what they leave alone, and what they must not be able to find."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, Boxes
from medbench.conformance import guards
from medbench.conformance.algorithms import ALGORITHMS
from medbench.conformance.check import Broken
from medbench.conformance.forms.base import above
from medbench.conformance.marked import boxes_of
from medbench.conformance.material import Episode
from medbench.conformance.trained import SHORT, Bench
from medbench.network import Backbone as Network


@ALGORITHMS.add(
    "support-untouched",
    reason="The same tensors may serve other methods, and both lanes.",
    hint="Use out-of-place operations (x = x - mean, not x -= mean), or clone first.",
    needs=("shapes",),
)
def _support_untouched(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    support, query = bench.given(bench.form.episode(), backbone)
    named = {"inputs": support.inputs, "labels": support.labels, "query": query}
    named |= {
        name: tensor
        for name in ("masks", "classes")
        if (tensor := getattr(support, name)) is not None
    }
    before = {name: tensor.clone() for name, tensor in named.items()}
    boxes = copy.deepcopy(support.boxes)
    bench.adapted(algorithm, support).predict(query)
    changed = [name for name, tensor in named.items() if not torch.equal(tensor, before[name])]
    if boxes is not None and not _same_boxes(support.boxes, boxes):
        changed.append("boxes")
    if changed:
        raise Broken(f"adapt or predict changed the {' and '.join(changed)} it was given.")


def _same_boxes(now: tuple[Boxes, ...] | None, before: tuple[Boxes, ...]) -> bool:
    pairs = zip(now or (), before, strict=True)
    return all(
        np.array_equal(getattr(a, part.name), getattr(b, part.name))
        for a, b in pairs
        for part in dataclasses.fields(a)
    )


@ALGORITHMS.add(
    "backbone-untouched",
    reason="Every episode starts from the same network; BatchNorm's running statistics are part "
    "of it.",
    hint="Adapt a copy.deepcopy of the backbone made in adapt, or use torch.func.functional_call "
    "with tensors of your own; leave it in eval mode and take hooks out again.",
    needs=("shapes",),
)
def _backbone_untouched(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    before = _portrait(backbone)
    support, query = bench.given(bench.form.episode(), backbone)
    bench.adapted(algorithm, support).predict(query)
    changed = [
        what for what, value in _portrait(backbone).items() if not _same(value, before[what])
    ]
    if changed:
        more = f", and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise Broken(f"adapt or predict changed the backbone: {', '.join(changed[:4])}{more}.")


def _portrait(backbone: Network) -> dict[str, Any]:
    """All that may be seen of a network: tensors, modes, hooks, gradients."""
    parameters = dict(backbone.named_parameters())
    found: dict[str, Any] = {
        f"{'parameter' if name in parameters else 'buffer'} {name}": t.clone()
        for name, t in backbone.state_dict().items()
    }
    for name, module in backbone.named_modules():
        shown = name or "the network"
        found[f"training mode of {shown}"] = module.training
        found[f"hooks of {shown}"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
    for name, parameter in backbone.named_parameters():
        found[f"gradient of {name}"] = parameter.grad is None
        found[f"requires_grad of {name}"] = parameter.requires_grad
    return found


def _same(now: Any, before: Any) -> bool:
    return torch.equal(now, before) if isinstance(now, Tensor) else bool(now == before)


# --- labels of queries ---------------------------------------------------------------------------

_EPISODES = 6
_QUERIES = 40


@ALGORITHMS.add(
    "query-labels",
    reason="A score means nothing if the method could read the answers.",
    hint="Use nothing but the support set in adapt and the query inputs in predict: no frames, no "
    "gc.get_objects, no data sets opened by hand.",
    needs=("finite",),
)
def _query_labels(bench: Bench) -> None:
    """Random pixels and random labels, which lie in reach of whoever looks around for them."""
    ready = bench.prepared()
    parts = []
    with guards.frames_left_alone(bench.subject.package) as looks:
        for number in range(_EPISODES):
            one = bench.form.episode(200 + number, (3, 3, 3), _QUERIES, noise=True)
            parts.append(_asked_beside_the_answers(bench, ready, one))
    if looks:
        raise Broken(f"it looks where answers may lie: {looks[0]}.")
    right = torch.cat(parts)
    limit = above(len(right), 1 / 3)
    share = float(right.mean())
    if share > limit:
        raise Broken(
            f"{100 * share:.0f} % of {len(right)} queries are right although images and labels are "
            f"random; chance is 33 %, at most {100 * limit:.0f} % is plausible. It finds labels "
            "elsewhere than in what it is given."
        )


def _asked_beside_the_answers(
    bench: Bench, ready: tuple[Algorithm, Backbone], one: Episode
) -> Tensor:
    """What is right of the queries, with the answers in local variables and in a data set."""
    support, query = bench.given(one, ready[1])
    query_labels = one.asked  # bait, as all below
    labels = query_labels.numpy()
    query_masks = getattr(one, "query_masks", None)
    query_boxes = None if query_masks is None else boxes_of(query_masks)
    dataset = copy.copy(bench.form.dataset())
    dataset.labels = labels
    if query_masks is not None:
        found = {"read_masks": lambda rows: query_masks[rows], "read_boxes": lambda _: query_boxes}
        vars(dataset).update(found)
    with guards.seeded():
        answer = bench.answer(bench.adapted(ready[0], support), query, support)
    return bench.form.right(answer, one)


# --- files and the network -----------------------------------------------------------------------


def _whole_life(bench: Bench) -> tuple[list[str], list[str], Exception | None]:
    """Addresses asked for, files written, and what was raised, from training to prediction."""
    found: tuple[list[str], list[str], Exception | None] | None = bench.shared.get("life")
    if found is None:
        bench.network()  # a backbone may come from a cache, which is not the algorithm's doing
        error = None
        with tempfile.TemporaryDirectory() as folder:
            given = Path(folder)
            with guards.no_network() as asked, guards.writing_only(given) as written:
                try:
                    learned = bench.train(SHORT)
                    bench.scores(bench.form.episode(), bench.prepared(learned=learned))
                except Exception as raised:
                    error = raised
        found = sorted(set(asked)), sorted(set(written)), error
        bench.shared["life"] = found
    return found


@ALGORITHMS.add(
    "no-network",
    reason="Cluster nodes have no network, and what is downloaded today is gone tomorrow.",
    hint="Ship what you need with the distribution, or let the user name a file; weights belong "
    "to a backbone plugin.",
    needs=("shapes",),
)
def _no_network(bench: Bench) -> None:
    asked, _, error = _whole_life(bench)
    if asked:
        raise Broken(f"it asked for {', '.join(asked[:3])}.")
    if error:
        raise error


@ALGORITHMS.add(
    "no-writing",
    reason="Many cells run at once, on read-only and shared disks too.",
    hint="Write nothing; put files that a library needs into tempfile.TemporaryDirectory().",
    needs=("shapes",),
)
def _no_writing(bench: Bench) -> None:
    _, written, _ = _whole_life(bench)
    if written:
        raise Broken(f"it wrote {', '.join(written[:3])}.")
