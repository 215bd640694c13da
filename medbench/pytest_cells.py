"""Runs the cell that a test's marker names, for the pytest plugin; imported when a test asks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.errors import FAILURES, UsageError
from medbench.files import locked
from medbench.gate.measurements import STAGES, Floats, Side
from medbench.gate.reading import cell_result, read_folders
from medbench.leaderboard.names import MAIN
from medbench.records import Record, read_record

# Words of the marker, and where each goes in a suite.
_PROTOCOL = ("episodes", "cost_episodes")
_WORDS = (
    "algorithm",
    "params",
    "budget",
    "backbone",
    "backbone_params",
    "weights",
    "protocol",
    "target",
    "shot",
    "seed",
    "device",
    "threads",
    "non_commercial",
    "timeout_s",
    *_PROTOCOL,
)


@dataclass(frozen=True)
class MeasuredCell:
    """What the ``medbench_cell`` fixture gives: a measured cell, its scores and its costs."""

    record: Record
    scores: Mapping[str, Floats]

    @property
    def title(self) -> str:
        """The cell's name in reports."""
        return cell_result(self.record, next(iter(self.scores))).title

    @property
    def accuracy(self) -> Floats:
        """Accuracy of every episode, ``(n_episodes,)``."""
        return self.scores["accuracy"]

    def times(self, name: str) -> Floats:
        """Seconds of every timed episode; `name` is ``adaptation_s`` or ``prediction_s``."""
        raw = self.record.data["costs"]["episodes"]
        found: Floats = np.sum([raw[s] for s in STAGES[name]], axis=0)
        return found

    @property
    def memory(self) -> Mapping[str, int | None]:
        """Peak memory by name, in bytes; None where this machine cannot tell."""
        found: Mapping[str, int | None] = self.record.data["costs"]["memory"]
        return found

    def extra_info(self) -> dict[str, Any]:
        """What pytest-benchmark keeps beside the times."""
        data = self.record.data
        main = next(m for m in MAIN if m in self.scores)
        return {
            "cell": self.title,
            "protocol": f"{data['cell']['protocol']}-v{data['cell']['protocol_version']}",
            "key": self.record.key,
            main: float(np.nanmean(self.scores[main])),
            "n_episodes": len(self.scores[main]),
            "adaptation_s": float(np.median(self.times("adaptation_s"))),
            "prediction_s": float(np.median(self.times("prediction_s"))),
            **{k: v for k, v in self.memory.items() if v is not None},
            "hardware": self.record.hardware,
            "versions": dict(data["versions"]),
        }


def run_cell(words: Mapping[str, Any], out: Path, name: str) -> MeasuredCell:
    """Measure the one cell that `words` describe, below `out`.

    Raises `UsageError` for unknown words, or where they name no cell or several.
    """
    import yaml

    from medbench.config import load_suite
    from medbench.engine.coordinator import run_plan
    from medbench.engine.local import LocalExecutor
    from medbench.engine.slots import cpu_slots, gpu_slots
    from medbench.jobs import Folders
    from medbench.opened import default_place
    from medbench.plan import build_plan
    from medbench.plugins import registry

    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(_suite(words, name), sort_keys=False)
    (folder / "asked.yaml").write_text(text, encoding="utf-8")
    found = registry()
    suite, _ = load_suite(str(folder / "asked.yaml"), found)
    plan = build_plan(suite, found, default_place(), device=words.get("device", "cpu"))
    if len(plan.cells) != 1:
        titles = ", ".join(c.title for c in plan.cells[:3]) or "none"
        raise UsageError(
            f"the medbench marker describes {len(plan.cells)} cells ({titles}), and one is needed: "
            "give protocol, target and shot."
        )
    # Several pytest workers must not time each other.
    threads = words.get("threads", 1)
    on_cpu = words.get("device", "cpu") == "cpu"
    executor = LocalExecutor(
        folder,
        default_place(),
        cpu_slots(1, threads) if on_cpu else gpu_slots(["0"], 1),
        threads=threads,
        timeouts={"cell": suite.cell_timeout_s, "training": suite.training_timeout_s},
    )
    with locked(out / "turn.lock", wait=True):
        run_plan(plan, found, folder, executor, suite_text=text, retry=FAILURES)
    record = read_record(Folders(folder).record(plan.cells[0]))
    return MeasuredCell(record, record.scores() if record.ok else {})


def collect(out: Path, metric: str) -> Side:
    """All that a session measured."""
    folders = sorted(p for p in out.iterdir() if (p / "records").is_dir())
    return read_folders(folders, metric, "this session")


def _suite(words: Mapping[str, Any], name: str) -> dict[str, Any]:
    for word in words:
        if word not in _WORDS:
            near = difflib.get_close_matches(word, _WORDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Valid: {', '.join(_WORDS)}."
            raise UsageError(f"the medbench marker has no word {word!r}.{hint}")
    for word in ("algorithm", "protocol"):
        if word not in words:
            raise UsageError(
                f"the medbench marker lacks {word!r}: write @pytest.mark.medbench("
                "algorithm='acme/nearest', protocol='synthetic-classes', shot=5)."
            )
    protocol: dict[str, Any] = {"name": words["protocol"]}
    protocol |= {k: words[k] for k in _PROTOCOL if k in words}
    for word, key in (("shot", "shots"), ("target", "targets")):
        if word in words:
            protocol[key] = [words[word]]
    backbone = {"name": words.get("backbone", "conv4"), "weights": words.get("weights", "random")}
    backbone["params"] = words.get("backbone_params", {})
    algorithm = {"name": words["algorithm"], "params": words.get("params", {})}
    if "budget" in words:
        algorithm["budget"] = words["budget"]
    return {
        "name": name,
        "protocols": [protocol],
        "backbones": [backbone],
        "algorithms": [algorithm],
        "seeds": [words.get("seed", 0)],
        "non_commercial": words.get("non_commercial", False),
        "cell_timeout_s": words.get("timeout_s", 3600.0),
    }
