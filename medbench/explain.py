"""A record in words: what the cell is, where its data come from, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medbench.records import Record

_STATUS = {
    "crash": "the plugin, or a library it uses, raised an error",
    "oom": "the memory did not suffice",
    "timeout": "it took longer than the suite allows",
    "non_finite": "a loss or score was NaN or infinite",
    "contract": "the plugin broke a promise of the interface",
    "unavailable": "something that it needs is not here",
}
_METRICS = {
    "accuracy": "of the queries were answered rightly",
    "balanced_accuracy": "of each class's queries, on average over classes",
    "auroc": "area under the ROC curve, one class against the rest",
    "dice": "twice what a mask and the true one share, over their sizes together",
    "ap50": "area under precision and recall, where half of a box must agree with the true one",
}


_TOLD = ("accuracy", "auroc", "dice", "ap50")


def explain(record: Record) -> str:
    """Paragraphs about one record, from the record alone."""
    data = record.data
    parts = [" ".join(_what(data)), " ".join(_data(data))]
    if data["status"] == "ok":
        parts += [" ".join(_training(data)), " ".join(_scores(data)), " ".join(_costs(data))]
        parts.append(" ".join(_caveats(data)))
    else:
        parts.append(" ".join(_failure(data)))
    parts.append(" ".join(_provenance(record)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(data: Mapping[str, Any]) -> Iterator[str]:
    cell, traits = data["cell"], data.get("traits", {})
    name = cell["algorithm_label"] if cell.get("algorithm_label") else cell["algorithm"]
    backbone = cell.get("backbone_label") or cell["backbone"]
    yield (
        f"This cell measures {_named(name, cell['algorithm'])} on the network "
        f"{_named(backbone, cell['backbone'])} with {_weights(cell.get('weights'))}, seed "
        f"{cell['seed']}."
    )
    params = data.get("ingredients", {}).get("algorithm", {}).get("params") or {}
    if params:
        yield f"Its parameters: {', '.join(f'{k} {_value(v)}' for k, v in params.items())}."
    if traits:
        adapts = traits.get("adapts", "nothing")
        sees = {"features": "the network's features", "maps": "the network's feature maps"}
        yield (
            f"It works on {sees.get(traits.get('works_on', ''), 'images')}, adapts {adapts}, and "
            + (
                "looks at all queries of a task together (transductive)."
                if traits.get("transductive")
                else "answers each query alone (inductive)."
            )
        )
        if not traits.get("uses_support", True):
            yield (
                "It looks at no labelled image of its tasks: it is told which of its sources' "
                "classes they ask about, and answers with what it learned of these. What other "
                "methods gain by adapting is read against it."
            )


def _named(label: str, name: str) -> str:
    return name if label == name else f"{label} ({name})"


def _weights(weights: Any) -> str:
    known = {"random": "random weights at the start", "pretrained": "pretrained weights"}
    return known.get(str(weights), f"weights from {weights}" if weights else "its weights")


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    cell = data["cell"]
    site = f", of the site {cell['site']!r} alone" if cell.get("site") else ""
    dataset = cell.get("dataset") or cell["target"]
    yield (
        f"Its tasks are those of protocol {cell['protocol']}, version {cell['protocol_version']}: "
        f"images of {dataset}{site}, {_counted(cell['way'], 'class', 'classes')} at a time, "
        f"{_counted(cell['shot'], 'labelled image', 'labelled images')} each."
    )
    yield from _inputs(data.get("inputs") or {})
    support_from = data.get("request", {}).get("support_from")
    if support_from:
        yield (
            "Each task is of one patient, whom nothing was meta-trained on: "
            + (
                "the labelled images are of that patient too, and where their order in time is "
                "known they come before the queries."
                if support_from == "same"
                else "the queries are, and the labelled images are of other patients."
            )
        )
    n = data.get("n_episodes") or data.get("request", {}).get("episodes")
    if n:
        yield f"It met {n} tasks, the same ones that every other algorithm meets."
    licences = data.get("licences") or {}
    if licences:
        yield f"Licences: {'; '.join(f'{k}: {v}' for k, v in licences.items())}."


def _inputs(inputs: Mapping[str, Any]) -> Iterator[str]:
    names = inputs.get("modalities") or []
    if not names:
        return
    told = ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else f"{names[0]} alone"
    yield f"Of the aligned modalities of an image {told} {'are' if len(names) > 1 else 'is'} shown."
    for side, word in (("query", "asked about"), ("support", "labelled")):
        for name, share in (inputs.get(f"missing_of_{side}") or {}).items():
            yield f"{100 * share:.3g} % of the images {word} lack {name}."


def _counted(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def _training(data: Mapping[str, Any]) -> Iterator[str]:
    training, cell = data.get("training"), data["cell"]
    if not training:
        yield "Nothing was meta-trained for it."
        return
    sources = cell.get("sources") or []
    yield (
        f"Before that it was meta-trained on {_listed(sources)} for {training['steps']:,} steps "
        f"({training['images_seen']:,} images, {_seconds(training['train_s'])})."
    )
    if training.get("val_accuracy") is not None:
        yield (
            f"The state after step {training['selected_step']:,} was kept, as it was right in "
            f"{100 * training['val_accuracy']:.1f} % of validation queries."
        )
    for note in training.get("notes") or []:
        yield f"Note: {note}."


def _listed(names: list[str]) -> str:
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} others"
    return ", ".join(names) or "its sources"


def _scores(data: Mapping[str, Any]) -> Iterator[str]:
    summary = {k: v for k, v in data.get("summary", {}).items() if v is not None}
    if "accuracy" in summary:
        # With several labels an image, what guessing gives depends on how common each is.
        several = "average_precision" in summary
        chance = "" if several else f" (guessing gives {100 / data['cell']['way']:.1f} %)"
        yield f"{100 * summary['accuracy']:.1f} % {_METRICS['accuracy']}{chance}."
    if "auroc" in summary:
        yield f"AUROC is {summary['auroc']:.3f} ({_METRICS['auroc']})."
    if "dice" in summary:
        yield f"The Dice score of its masks is {summary['dice']:.3f} ({_METRICS['dice']})."
    if "ap50" in summary:
        yield f"The average precision of its boxes is {summary['ap50']:.3f} ({_METRICS['ap50']})."
    rest = [f"{k} {v:.3f}" for k, v in summary.items() if k not in _TOLD]
    if rest:
        yield f"Also: {', '.join(rest)}. All are means over tasks."


def _costs(data: Mapping[str, Any]) -> Iterator[str]:
    costs = data.get("costs") or {}
    times = costs.get("times") or {}
    if "adaptation_s" in times:
        yield (
            f"{costs['n_episodes']} tasks were timed one by one from raw images: adapting takes "
            f"{_seconds(times['adaptation_s']['median'])} (median; 95 of 100 stay below "
            f"{_seconds(times['adaptation_s']['p95'])})"
            + (
                f", predicting all queries {_seconds(times['prediction_s']['median'])}."
                if "prediction_s" in times
                else "."
            )
        )
    memory = costs.get("memory") or {}
    if memory.get("peak_host_added_bytes") is not None:
        yield f"That needs {memory['peak_host_added_bytes'] / 2**20:.1f} MiB of memory more."
    if memory.get("peak_device_bytes") is not None:
        yield f"On the GPU it peaks at {memory['peak_device_bytes'] / 2**20:.1f} MiB."
    if costs.get("parameters_adapted") is not None:
        n = costs["parameters_adapted"]
        yield f"Adapting sets {n:,} parameters." if n else "Adapting sets no parameters."
    if costs.get("exclusive") is False and costs.get("load_average") is not None:
        yield (
            f"Other work ran on the machine at that time (load {costs['load_average']:.1f}), which "
            "times may show."
        )


def _caveats(data: Mapping[str, Any]) -> Iterator[str]:
    for text in data.get("overlap") or []:
        yield f"Mind: it was {text}."


def _failure(data: Mapping[str, Any]) -> Iterator[str]:
    status = data["status"]
    yield f"It was not measured: {_STATUS.get(status, status)} (status {status})."
    if data.get("stage"):
        yield f"That was in stage {str(data['stage']).replace('_', ' ')}."
    if data.get("error"):
        yield f"The error: {data['error']}"


def _provenance(record: Record) -> Iterator[str]:
    data = record.data
    made = data.get("ingredients", {}).get("algorithm", {}).get("plugin") or {}
    if made:
        yield f"The algorithm came from {made.get('distribution')} {made.get('version')}."
    hardware = data.get("hardware") or {}
    if hardware.get("class"):
        yield f"It ran on {hardware['class']}"
        yield f"and was recorded {data['created']}." if data.get("created") else "."
    yield f"Its key is {record.key}; the record is {record.path}."


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} microseconds"
    if seconds < 1.0:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
