"""Checks of algorithms that compare scores with scores: what these may and may not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from medbench.conformance import fresh, material
from medbench.conformance.algorithms import ALGORITHMS
from medbench.conformance.check import Broken, DoesNotApply
from medbench.conformance.guards import changed_states, random_states, seeded
from medbench.conformance.trained import LONGER, SHORT, Bench, a_predictor, a_tensor, gap

# Shares of the range of scores: what rounding may do, in one order of sums and in another.
_ROUNDING = 1e-4
_REORDERED = 1e-3
_EPISODES = 24


@ALGORITHMS.add(
    "deterministic",
    reason="A record must be reproducible from its seeds.",
    hint="Draw from support.generator(), never from the clock, os.urandom or the order of a set; "
    "if your method cannot (a library without seeds), declare the trait deterministic=False.",
    needs=("finite",),
    exact=True,
)
def _deterministic(bench: Bench) -> None:
    one = material.episode()
    ready = bench.prepared()
    first, again = bench.scores(one, ready), bench.scores(one, bench.prepared())
    if not torch.equal(first, again):
        raise Broken(
            "the same episode with the same seeds gave other scores to a new instance (by "
            f"{gap(again, first):.2g} of their range)."
        )


@ALGORITHMS.add(
    "random-state",
    reason="Random states that all share would make scores depend on what ran before.",
    hint="Use support.generator(i): torch.rand(..., generator=support.generator()). Modules with "
    "random initialisation need torch.random.fork_rng around a seed from it.",
    needs=("deterministic",),
    exact=True,
)
def _random_state(bench: Bench) -> None:
    one = material.episode()
    algorithm, backbone = bench.prepared()
    support, query = material.given(one, backbone, bench.traits.works_on)
    with seeded():
        before = random_states()
        predictor = a_predictor(algorithm.adapt(support))
        predictor.predict(query)
        moved = changed_states(before)
    if moved:
        raise Broken(f"adapt or predict drew from the global generator of {' and '.join(moved)}.")
    found = bench.scores(one, global_seed=1)
    if not torch.equal(found, bench.scores(one, global_seed=0)):
        raise Broken("scores change with the seed of the global generators.")


@ALGORITHMS.add(
    "same-seed",
    reason="A meta-training and all that follows must be reproducible from one seed.",
    hint="Draw in meta_train and prepare from torch's generator, which the core seeds for every "
    "step, or from run.seed; give libraries a seed of their own.",
    needs=("deterministic",),
    exact=True,
)
def _same_seed(bench: Bench) -> None:
    one = material.episode()
    first = bench.scores(one)
    again = bench.scores(one, bench.prepared(learned=bench.train(SHORT)))
    if gap(again, first) > 1e-6:
        raise Broken(
            "trained and prepared twice from the same seed, it gives other scores (by "
            f"{gap(again, first):.2g} of their range)."
        )


@ALGORITHMS.add(
    "predict-twice",
    reason="Predicting must not use up or change what adapting learned.",
    hint="Keep the predictor as adapt made it: no training steps, counters or generators inside "
    "predict that go on from call to call.",
    needs=("deterministic",),
    exact=True,
)
def _predict_twice(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    support, query = material.given(material.episode(), backbone, bench.traits.works_on)
    predictor = a_predictor(algorithm.adapt(support))
    first = a_tensor(predictor.predict(query))
    again = a_tensor(predictor.predict(query))
    if not torch.equal(first, again):
        raise Broken(
            "the second predict of the same queries gave other scores (by "
            f"{gap(again, first):.2g} of their range)."
        )


@ALGORITHMS.add(
    "episodes-apart",
    reason="What is learned from one patient's images must not leak into the next task.",
    hint="Keep nothing of an episode in the algorithm or in modules: adapt copies, and put what "
    "was learned into the predictor.",
    needs=("predict-twice",),
    exact=True,
)
def _episodes_apart(bench: Bench) -> None:
    ready = bench.prepared()
    first = bench.scores(material.episode(0), ready)
    bench.scores(material.episode(1), ready)
    again = bench.scores(material.episode(0), ready)
    if not torch.equal(first, again):
        raise Broken(
            "episode A, then B, then A again: A's scores changed by "
            f"{gap(again, first):.2g} of their range."
        )


@ALGORITHMS.add(
    "label-permutation",
    reason="Which class is called 0 means nothing; a method that depends on it reads tea leaves.",
    hint="Treat classes alike: no start, order or tie-break by class number. A method that must "
    "(learned starts for each position) says so in an excuse of the spec.",
    needs=("deterministic",),
    exact=True,
)
def _label_permutation(bench: Bench) -> None:
    one = material.episode()
    names = torch.tensor([2, 0, 1])
    found = bench.scores(material.renamed(one, names))[..., names]
    change = gap(found, bench.scores(one))
    if change > _REORDERED:
        raise Broken(
            "with the classes renamed, the scores of the same classes changed by "
            f"{change:.2g} of their range."
        )


@ALGORITHMS.add(
    "support-order",
    reason="A support set is a set; its order is an accident of the file system.",
    hint="Gather by labels, and draw by class, not by position. A method that reads the support "
    "set in order says so in an excuse of the spec.",
    needs=("deterministic",),
    exact=True,
)
def _support_order(bench: Bench) -> None:
    one = material.episode()
    change = gap(bench.scores(material.reordered(one)), bench.scores(one))
    if change > _REORDERED:
        raise Broken(
            "with the same support images in another order, scores changed by "
            f"{change:.2g} of their range."
        )


@ALGORITHMS.add(
    "query-alone",
    reason="Methods that look at all queries at once (transductive) have more to go by, and are "
    "ranked and marked apart.",
    hint="Declare the trait transductive (True, or by the parameter that makes it so), or make "
    "each query's scores independent of the others: BatchNorm in training mode, centring and "
    "ranking over queries are the usual leaks.",
    needs=("predict-twice", "one-query"),
    exact=True,
)
def _query_alone(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    support, query = material.given(material.episode(), backbone, bench.traits.works_on)
    predictor = a_predictor(algorithm.adapt(support))
    together = a_tensor(predictor.predict(query))
    alone = torch.cat([a_tensor(predictor.predict(q.unsqueeze(0))) for q in query])
    change = gap(alone, together)
    if bench.transductive and change <= 1e-6:
        raise Broken(
            "it declares itself transductive, and scores each query alone as it does among others."
        )
    if not bench.transductive and change > _ROUNDING:
        raise Broken(
            "it declares itself inductive, and scores queries one by one differently than "
            f"together (by {change:.2g} of their range)."
        )


@ALGORITHMS.add(
    "batched",
    reason="With the trait batched, adapt gets many episodes at a time, and must give each what it "
    "would get alone.",
    hint="Write with the last dimensions as the episode and '...' before them; sums over dim=-2, "
    "never dim=0. Draw for episode i from support.generator(i). n_adapted counts one episode.",
    needs=("deterministic",),
    exact=True,
)
def _batched(bench: Bench) -> None:
    if not bench.traits.batched:
        raise DoesNotApply("not declared batched: its episodes are looped")
    episodes = [material.episode(number, (2, 1, 3)) for number in range(4)]
    algorithm, backbone = bench.prepared()
    pairs = [material.given(one, backbone, bench.traits.works_on) for one in episodes]
    alone = torch.stack([a_tensor(algorithm.adapt(s).predict(q)) for s, q in pairs])
    counted = a_predictor(algorithm.adapt(pairs[0][0])).n_adapted
    support, query = material.together(pairs)
    for lead in ((4,), (2, 2)):
        folded = replace(
            support,
            inputs=support.inputs.reshape(*lead, *support.inputs.shape[1:]),
            labels=support.labels.reshape(*lead, -1),
        )
        predictor = a_predictor(algorithm.adapt(folded))
        found = a_tensor(predictor.predict(query.reshape(*lead, *query.shape[1:])))
        want = (*lead, *alone.shape[1:])
        if tuple(found.shape) != want:
            raise Broken(
                f"predict returned {tuple(found.shape)} for {'x'.join(map(str, lead))} episodes, "
                f"and {want} is needed."
            )
        change = max(gap(a, b) for a, b in zip(found.reshape(alone.shape), alone, strict=True))
        if change > _ROUNDING:
            raise Broken(
                f"{'x'.join(map(str, lead))} episodes at a time give other scores than one by one "
                f"(by {change:.2g} of their range)."
            )
        if predictor.n_adapted != counted:
            raise Broken(
                f"n_adapted is {predictor.n_adapted} for four episodes and {counted} for one; it "
                "counts one."
            )


@ALGORITHMS.add(
    "other-process",
    reason="Trainings and cells run in processes of their own, on other machines even.",
    hint="Put all that was learned into the tensors that meta_train returns; keep nothing in "
    "module globals, and use no hash() of texts.",
    needs=("deterministic",),
    exact=True,
)
def _other_process(bench: Bench) -> None:
    one = material.episode()
    here = bench.scores(one)
    there = torch.from_numpy(fresh.scores_elsewhere(bench.subject, bench.learned(), 0))
    if there.shape != here.shape or gap(there, here) > 1e-5:
        raise Broken(
            "a new process with the same learned tensors gives other scores (by "
            f"{gap(there, here):.2g} of their range)."
        )


# --- learning ------------------------------------------------------------------------------------


def _many(shots: tuple[int, ...], *, noise: bool = False) -> list[material.Episode]:
    return [material.episode(100 + i, shots, 9, noise=noise) for i in range(_EPISODES)]


def _above(n: int, chance: float, sigmas: float) -> float:
    """The share right that guessing `n` queries independently exceeds by chance only."""
    return float(chance + sigmas * np.sqrt(chance * (1 - chance) / n))


@ALGORITHMS.add(
    "above-chance",
    reason="A method that cannot tell clearly different stripes apart learns nothing from its "
    "support set.",
    hint="Check the sign of distances (scores are logits, larger is likelier), the order of "
    "classes, and that labels are used. If trainings are too short for it here, set a larger rate "
    "in the spec's conformance params.",
    needs=("finite", "batched"),
)
def _above_chance(bench: Bench) -> None:
    episodes = _many((5, 5, 5))
    limit = _above(_EPISODES * 9, 1 / 3, 5.0)
    lengths = (SHORT, *LONGER) if bench.traits.meta_trains else (SHORT,)
    right = 0.0
    for n_tasks in lengths:
        right = bench.share_right(episodes, n_tasks)
        if right > limit:
            return
    trained = f" after a training on {lengths[-1]} tasks" if len(lengths) > 1 else ""
    raise Broken(
        f"{100 * right:.0f} % of {_EPISODES * 9} queries of separable 3-way 5-shot tasks are right"
        f"{trained}; chance is 33 %, and more than {100 * limit:.0f} % is needed."
    )


@ALGORITHMS.add(
    "shuffled-labels",
    reason="When labels say nothing, whatever beats chance comes from somewhere else.",
    hint="Look for what tells a query's class without the labels: the order of queries or of the "
    "support set, images remembered from training, files.",
    needs=("finite", "batched"),
)
def _shuffled_labels(bench: Bench) -> None:
    way = 3
    # Every class is given one support image of each true class: labels that say nothing at all.
    labels = torch.arange(way).repeat_interleave(way).reshape(way, way).T.reshape(-1)
    episodes = []
    for one in _many((way,) * way):
        # Queries ordered by class, as a careless loader would have them.
        order = torch.argsort(one.asked, stable=True)
        episodes.append(
            replace(one, labels=labels, query=one.query[order.numpy()], asked=one.asked[order])
        )
    right = bench.share_right(episodes, SHORT)
    # Queries of a class stand and fall together, so that few of them are independent.
    limit = _above(_EPISODES * way, 1 / way, 5.0)
    if right > limit:
        raise Broken(
            f"{100 * right:.0f} % of the queries are right although the support labels say "
            f"nothing; chance is 33 %, and at most {100 * limit:.0f} % is plausible."
        )
