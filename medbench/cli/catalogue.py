"""The methods as a page: what ``medbench list algorithms --markdown`` prints, from specs alone."""

from __future__ import annotations

from collections.abc import Iterable

from medbench.api import AlgorithmSpec

FAMILIES = {
    "metric": "Metrics and representations",
    "optimisation": "Learned optimisation",
    "augmentation": "Augmentation",
    "transductive": "Transductive inference",
    "fine-tuning": "Fine-tuning and strong pretraining",
    "segmentation": "Segmentation",
    "detection": "Detection",
    "reference": "References that adapt to nothing",
    "other": "Others",
}
_HEAD = ("method", "what it does", "works on", "adapts", "queries", "several labels", "paper")


def catalogue(specs: Iterable[AlgorithmSpec]) -> str:
    """A Markdown page with a table of each family, in the order the specs come."""
    listed = list(specs)
    lines = [
        "# Methods",
        "",
        "Made from the specs by `medbench list algorithms --markdown`; a test compares. "
        "`medbench info NAME` shows the parameters, with the paper's values as defaults.",
        "",
        "*Works on*: frozen `features`, frozen feature `maps`, or `images` (the method runs the "
        "network itself). *Queries*: `alone` methods predict each query by itself; `together` ones "
        "look at all queries of an episode (transductive), some only with the parameter named. "
        "*Several labels*: whether the method serves multilabel protocols.",
        "",
        "Methods on maps compare places, so give them some: at 28 pixels the last map of `conv4` "
        "is 1x1, and with `params: {pools: 2}` 7x7. `lora` and `adapters` need a vision "
        "transformer (`timm:vit_...`).",
    ]
    for family, title in FAMILIES.items():
        rows = [_row(spec) for spec in listed if spec.family == family]
        if rows:
            lines += ["", f"## {title}", "", _line(_HEAD), _line(["---"] * len(_HEAD))]
            lines += [_line(row) for row in rows]
    return "\n".join([*lines, ""])


def _row(spec: AlgorithmSpec) -> list[str]:
    traits, c = spec.traits, spec.citation
    if isinstance(traits.transductive, bool):
        queries = "together" if traits.transductive else "alone"
    else:
        named = "; ".join(
            f"`{k}: {', '.join(map(str, v))}`" for k, v in traits.transductive.items()
        )
        queries = f"together with {named}"
    paper = f"{c.authors.partition(',')[0].split()[-1]}, {c.venue} {c.year}"
    return [
        f"`{spec.name}`",
        spec.summary,
        traits.works_on,
        traits.adapts,
        queries,
        "yes" if "multilabel" in traits.task_kinds else "no",
        f"[{paper}]({c.url})" if c.url else paper,
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
