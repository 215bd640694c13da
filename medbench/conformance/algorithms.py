"""Checks of algorithms: what they must return, whatever the shape of the task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medbench.api import Algorithm
from medbench.conformance.check import Broken, DoesNotApply, Shelf, in_words
from medbench.conformance.common import COMMON
from medbench.conformance.trained import Bench, call
from medbench.errors import MedbenchError
from medbench.plugins import load_factory

ALGORITHMS = Shelf("algorithms")
ALGORITHMS.take(*COMMON)


@ALGORITHMS.add(
    "factory",
    reason="A suite may set every parameter that the spec declares.",
    hint="Give the factory a keyword argument for each parameter of the spec, and accept every "
    "value of its choices.",
)
def _factory_takes_parameters(bench: Bench) -> None:
    bench.make()
    for parameter in bench.subject.spec.parameters:
        for value in parameter.choices:
            changed = dict(bench.subject.params) | {parameter.name: value}
            stages = {p.name: p.stage for p in bench.subject.spec.parameters}
            apart = bench.subject.spec.trainer and stages[parameter.name] == "train"
            path = bench.subject.spec.trainer if apart else bench.subject.spec.factory
            if bench.subject.spec.trainer:
                without = "adapt" if apart else "train"
                changed = {k: v for k, v in changed.items() if stages[k] != without}
            try:
                call(load_factory(bench.subject.entry, path), changed, str(path))
            except MedbenchError:
                pass  # values that do not go together may be refused in clear words
            except Broken:
                raise
            except Exception as error:
                raise Broken(f"with {parameter.name}={value!r} it {in_words(error)}") from error


@ALGORITHMS.add(
    "meta-train",
    reason="A meta-training is run by the core: its budget, validation and checkpoints depend on "
    "run.steps, and what is returned is stored and given to prepare.",
    hint="Loop over run.steps({...}, images_per_step=...) until it ends, call run.log(loss) in "
    "each step, and return run.best(); declare the trait meta_trains exactly when there is a "
    "meta_train.",
    needs=("factory",),
)
def _meta_trains(bench: Bench) -> None:
    own = bench.trainer()
    has = getattr(type(own), "meta_train", None) not in (None, Algorithm.meta_train)
    if has and not bench.traits.meta_trains:
        raise Broken(
            f"{type(own).__name__} has a meta_train, and the traits say meta_trains=False: it is "
            "never called."
        )
    if not bench.traits.meta_trains:
        raise DoesNotApply("declared without meta-training")
    if not has:
        raise Broken(
            f"the traits say meta_trains=True, and {type(own).__name__} has no meta_train."
        )
    learned = bench.learned()
    for name, tensor in learned.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Broken(f"the learned tensor {name} is not finite.")
    bench.prepared()


def _check_shape(bench: Bench, shots: Sequence[int], n_query: int = 9) -> None:
    ready = bench.prepared()
    support, query = bench.given(bench.form.episode(0, shots, n_query), ready[1])
    answer = bench.answer(bench.adapted(ready[0], support), query, support)
    each = "/".join(map(str, shots))
    words = f"{n_query} queries of a {len(shots)}-way task with {each} support images"
    bench.form.check_shape(answer, query, support, words)
    bench.form.check_finite(answer, f"in a {len(shots)}-way task with {each} support images")


@ALGORITHMS.add(
    "shapes",
    reason="Answers are compared with the truth by position: one row a query, one column a class.",
    hint="Return a Predictor from adapt, and from its predict a tensor (..., n_query, n_way) of "
    "the inputs' floating type, on the inputs' device; for masks (..., n_query, n_way, H, W), as "
    "large as support.masks. For boxes return a Detector, and a list of Detections, one a query.",
    needs=("meta-train",),
)
def _shapes(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    support, query = bench.given(bench.form.episode(), backbone)
    answer = bench.answer(bench.adapted(algorithm, support), query, support)
    words = f"{len(query)} queries of a {support.n_way}-way task"
    bench.form.check_shape(answer, query, support, words)


@ALGORITHMS.add(
    "device",
    reason="Suites run on GPUs too.",
    hint="Make new tensors on support.inputs.device, and move what you keep there in prepare.",
    needs=("shapes",),
)
def _device(bench: Bench) -> None:
    if not torch.cuda.is_available():
        raise DoesNotApply("there is no GPU here")
    bench = Bench(bench.subject, torch.device("cuda"))
    scores = bench.scores(bench.form.episode())
    # Boxes are numpy arrays, wherever the queries were.
    if isinstance(scores, Tensor) and scores.device.type != "cuda":
        raise Broken(f"the queries were on cuda, and the scores are on {scores.device}.")


@ALGORITHMS.add(
    "finite",
    reason="One NaN makes a whole cell fail.",
    hint="Look for a logarithm or division of what may be zero, and for a softmax by hand; use "
    "log_softmax, clamp_min or eps.",
    needs=("shapes",),
)
def _finite_scores(bench: Bench) -> None:
    for number in range(2):
        answer = bench.scores(bench.form.episode(number))
        bench.form.check_finite(answer, "in an ordinary task")


@ALGORITHMS.add(
    "alike-images",
    reason="Medical images can be black, or all alike; features are then zero or equal.",
    hint="Guard norms and standard deviations against zero (eps), and inverses against singular "
    "matrices.",
    needs=("finite",),
)
def _degenerate(bench: Bench) -> None:
    ready = bench.prepared()
    support, query = bench.given(bench.form.episode(), ready[1])
    for value in (0.0, 1.0):
        alike = replace(support, inputs=torch.full_like(support.inputs, value))
        predictor = bench.adapted(ready[0], alike)
        answer = bench.answer(predictor, torch.full_like(query, value), alike)
        bench.form.check_finite(answer, f"where all inputs are {value:g}")


def _shape_check(
    name: str, shots: Sequence[int], n_query: int, reason: str, hint: str
) -> Callable[[Bench], None]:
    # No shots stand for two of every class there is.
    @ALGORITHMS.add(name, reason=reason, hint=hint, needs=("finite",))
    def check(bench: Bench) -> None:
        every = (2,) * bench.form.n_classes
        _check_shape(bench, shots or every, n_query or 2 * len(every))

    return check


_shape_check(
    "one-shot",
    (1, 1, 1),
    9,
    "One labelled image a class is the commonest task.",
    "Spreads within a class (standard deviations, covariances) do not exist for one image: fall "
    "back to a shared or fixed one.",
)
_shape_check(
    "two-way",
    (3, 3),
    9,
    "Disease or not is a two-class task.",
    "Give two columns of scores for two classes too, not one.",
)
_shape_check(
    "unequal-shots",
    (3, 1, 1),
    9,
    "Classes of real data have different numbers of labelled images.",
    "Gather by support.labels, and count each class apart; do not reshape to (n_way, shot, d).",
)
_shape_check(
    "one-query",
    (3, 3, 3),
    1,
    "A clinic asks about one image.",
    "Do not squeeze dimensions away; statistics over queries need a fallback for one.",
)
_shape_check(
    "all-classes",
    (),
    0,
    "A protocol may ask about all classes of a data set, more than training tasks had.",
    "Take the number of classes from support.n_way at each call, never from training or a "
    "parameter.",
)


@ALGORITHMS.add(
    "adapted-count",
    reason="Tables show how many parameters adapting sets, for one episode.",
    hint="Set n_adapted on the predictor, an int for one episode; it is zero exactly where the "
    "trait adapts says 'nothing'.",
    needs=("finite",),
)
def _adapted_count(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    support, _ = bench.given(bench.form.episode(), backbone)
    n = bench.adapted(algorithm, support).n_adapted
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise Broken(f"n_adapted is {n!r}, and a whole number from 0 is needed.")
    if (n > 0) != (bench.traits.adapts != "nothing"):
        raise Broken(f"n_adapted is {n}, and the trait adapts says {bench.traits.adapts!r}.")
