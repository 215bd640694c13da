"""What counts as worse: the thresholds of a gate, from YAML, with defaults that fit most."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictStr, model_validator

from medbench.model import Model
from medbench.yamlfile import Document

Share = Annotated[float, Field(ge=0, lt=1)]
Noise = Annotated[float, Field(gt=0, lt=1)]
Kind = Literal["accuracy", "time", "memory"]


class Accuracy(Model):
    """Differences of the mean score, in its own unit (0.01 is one point of accuracy)."""

    metric: StrictStr = "accuracy"
    # What is called a loss is at least this, besides being more than chance.
    smallest: Share = 0.005
    # Equivalent: the whole interval lies within this of no difference.
    margin: Share = 0.01
    # A difference of the means up to this is none at all, whatever its interval.
    tolerance: Share = 0.0
    # Training once more with other rounding moves a mean by so much (a standard deviation). It
    # enters where the machine or torch is another one; on the same, equal code gives equal scores.
    training_noise: Share = 0.01

    @model_validator(mode="after")
    def _higher_is_better(self) -> Accuracy:
        if self.metric in ("nll", "ece", "grade_error", "hd95"):
            raise ValueError(f"metric {self.metric!r} falls as a method improves; take another.")
        return self


class Time(Model):
    """Ratios of times: 0.05 is five per cent."""

    smallest: Share = 0.05
    margin: Share = 0.10
    # Two processes that do the same differ by so much (a standard deviation of log time), where
    # too few rounds were run to tell.
    noise: Noise = 0.08
    # The same, where a record holds no calibration of its machine.
    uncalibrated_noise: Noise = 0.20
    # The part of the machine's own change that the calibration may have got wrong.
    calibration_error: Share = 0.25
    # Differences below this many seconds matter to nobody.
    smallest_s: Annotated[float, Field(ge=0)] = 2e-4


class Memory(Model):
    """Ratios of peak memory; bytes that tensors take are counted exactly and have no noise."""

    smallest: Share = 0.05
    margin: Share = 0.05
    # Differences below this many bytes of tensors matter to nobody.
    smallest_bytes: Annotated[int, Field(ge=0)] = 1 << 14
    # The same of the process's resident set, which moves by pages and by what malloc keeps.
    smallest_host_bytes: Annotated[int, Field(ge=0)] = 1 << 22
    # Resident sets of two processes that do the same differ by so much (a standard deviation).
    noise: Noise = 0.15


class Override(Model):
    """Other thresholds for some cells: those whose title holds `cells` (a glob)."""

    cells: StrictStr
    accuracy: Accuracy | None = None
    time: Time | None = None
    memory: Memory | None = None


class Thresholds(Model):
    """All that a verdict depends on, besides the measurements."""

    accuracy: Accuracy = Accuracy()
    time: Time = Time()
    memory: Memory = Memory()
    # How often a gate over identical code may fail by chance, over all its comparisons together.
    family_error: Annotated[float, Field(gt=0, le=0.2)] = 0.01
    # Kinds that must have been compared for the gate to pass.
    require: tuple[Kind, ...] = ("accuracy",)
    # "cannot_tell": also fail where the measurements do not suffice to call a cell equivalent.
    fail_on: tuple[Literal["regression", "cannot_tell"], ...] = ("regression",)
    overrides: tuple[Override, ...] = ()

    @model_validator(mode="after")
    def _one_metric(self) -> Thresholds:
        for override in self.overrides:
            if override.accuracy and override.accuracy.metric != self.accuracy.metric:
                raise ValueError(
                    f"overrides for {override.cells!r}: metric {override.accuracy.metric!r} and "
                    f"{self.accuracy.metric!r}; one gate compares one metric."
                )
        return self

    def of(self, title: str) -> tuple[Accuracy, Time, Memory]:
        """The thresholds of one cell: those of the first override that fits each kind."""
        found: dict[str, Model] = {}
        for override in self.overrides:
            if fnmatch.fnmatchcase(title.lower(), f"*{override.cells.lower()}*"):
                for kind in ("accuracy", "time", "memory"):
                    own = getattr(override, kind)
                    if own is not None:
                        found.setdefault(kind, own)
        accuracy, time = found.get("accuracy", self.accuracy), found.get("time", self.time)
        memory = found.get("memory", self.memory)
        assert isinstance(accuracy, Accuracy)
        assert isinstance(time, Time)
        assert isinstance(memory, Memory)
        return accuracy, time, memory


def load_thresholds(path: Path | None) -> Thresholds:
    """The thresholds in a YAML file, or the defaults. Raises `ConfigError` with the line."""
    return Thresholds() if path is None else Document.read(path).validate(Thresholds)
