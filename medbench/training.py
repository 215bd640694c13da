"""One meta-training: budget, validation, checkpoints that resume, and a learning curve."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medbench.api import Budget, Detections, Support, derive_seed
from medbench.distributed import Group, RunningStatistics
from medbench.errors import ContractError, DataError, NonFinite
from medbench.files import atomic
from medbench.source import TaskSource
from medbench.validation import judged

VALIDATIONS = 10
# The environment variable serves whoever runs where jobs are pre-empted every minute.
CHECKPOINT_EVERY_S = float(os.environ.get("MEDBENCH_CHECKPOINT_S", "20"))
_CURVE_POINTS = 50

Validate = Callable[[Support, Tensor], Tensor | list[Detections]]
Progress = Callable[[float, str], None]


class Run:
    """`medbench.api.TrainingRun`: everything about a training that is not the algorithm's."""

    def __init__(
        self,
        *,
        budget: Budget,
        seed: int,
        device: torch.device,
        source: TaskSource,
        validation_episodes: int,
        checkpoint: Path | None = None,
        progress: Progress = lambda fraction, text: None,
        group: Group | None = None,
    ) -> None:
        """`progress` is told the fraction done and a few words.

        Of a `group` of processes the first one validates, saves and keeps the curve.
        """
        self.budget, self.seed, self.device = budget, seed, device
        self._source = source
        self._validation_episodes = validation_episodes
        self._checkpoint = checkpoint
        self._progress = progress
        self._group = group or Group()
        self._statistics = RunningStatistics(())
        self._shared = False
        self._state: Mapping[str, Any] = {}
        self._best: dict[str, Tensor] = {}
        self._losses: list[float] = []
        self._logged = True
        self._latest = 0.0
        self.curve: list[dict[str, float | int | None]] = []
        self.best_step: int | None = None
        self.best_accuracy: float | None = None
        self.images_seen = 0
        self.n_steps = 0
        self._step = 0
        self.seconds = 0.0
        self.resumed_at: list[int] = []
        self.notes: list[str] = []

    def steps(
        self,
        state: Mapping[str, Any],
        *,
        images_per_step: int,
        validate: Validate | None = None,
    ) -> Iterator[int]:
        """See `medbench.api.TrainingRun.steps`."""
        self._state = state
        group = self._group
        total = max(1, math.ceil(self.budget.images / images_per_step))
        every = max(1, total // VALIDATIONS)
        curve_every = max(1, total // _CURVE_POINTS)
        modules = [m for m in state.values() if isinstance(m, nn.Module)]
        first = self._resume()
        started = saved = time.perf_counter()
        before = self.seconds
        for step in range(first, total):
            torch.manual_seed(derive_seed("step", self.seed, step))
            self._step = step
            self._logged = self._shared = False
            if group.world > 1:
                self._statistics = RunningStatistics(modules)
            yield step
            if not self._logged:
                raise ContractError(f"Step {step} ended without run.log(loss).")
            if group.world > 1 and not self._shared:
                raise ContractError(
                    f"Step {step} ended without run.together: the spec claims parallel=True, and "
                    "the processes learned apart. Call it, or do not claim that."
                )
            self.n_steps = step + 1
            self.images_seen = self.n_steps * images_per_step
            self.seconds = before + time.perf_counter() - started
            last = step + 1 == total
            if (step + 1) % every == 0 or last:
                group.check_alike(self._tensors(), f"after step {step}")
            if not group.first:
                continue
            if validate is not None and ((step + 1) % every == 0 or last):
                self._point(self._validate(validate))
            elif (step + 1) % curve_every == 0 or last:
                self._point(None)
            if validate is None and last:
                self._keep(None)
            text = f"step {step + 1}/{total}, loss {self._latest:.3f}"
            if self.best_accuracy is not None:
                text += f", val {100 * self.best_accuracy:.1f} %"
            told = time.perf_counter()
            self._progress((step + 1) / total, text)
            # While a cost lane is measured beside it, a training pauses there.
            started += time.perf_counter() - told
            if last or time.perf_counter() - saved > CHECKPOINT_EVERY_S:
                self.seconds = before + time.perf_counter() - started
                self._save()
                saved = time.perf_counter()
        self.seconds = before + time.perf_counter() - started

    def log(self, loss: float) -> None:
        """See `medbench.api.TrainingRun.log`."""
        if not math.isfinite(loss):
            raise NonFinite(
                f"The training loss is {loss} at step {self.n_steps}. A smaller learning rate is "
                "the usual cure."
            )
        self._losses.append(loss)
        self._latest = loss
        self._logged = True

    def share(self, count: int) -> range:
        """See `medbench.api.TrainingRun.share`."""
        return self._group.share(count)

    def reseed(self, number: int) -> None:
        """See `medbench.api.TrainingRun.reseed`."""
        torch.manual_seed(derive_seed("task", self.seed, self._step, number))

    def together(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """See `medbench.api.TrainingRun.together`."""
        self._shared = True
        found = self._group.add_up(parameters, loss)
        self._statistics.merge(self._group)
        return found

    def best(self) -> dict[str, Tensor]:
        """See `medbench.api.TrainingRun.best`."""
        if not self._group.first and self.n_steps:
            self._best = {k: v.detach().cpu().clone() for k, v in self._tensors().items()}
        if not self._best:
            raise ContractError("run.best() was called before run.steps() had ended.")
        # In one order: what came from a checkpoint has another than what was just kept.
        self._group.from_first(self._best[name] for name in sorted(self._best))
        self._load_into(self._best)
        return {k: v.clone() for k, v in self._best.items()}

    def _validate(self, validate: Validate) -> float | None:
        modules = [m for m in self._state.values() if isinstance(m, nn.Module)]
        modes = [(part, part.training) for m in modules for part in m.modules()]
        for module in modules:
            module.eval()
        hits, n = 0.0, 0
        for task in self._source.validation(self._validation_episodes):
            try:
                right, of = judged(task, validate(task.support, task.query))
            except NonFinite as error:
                raise NonFinite(f"{error} This was at step {self.n_steps}.") from error
            hits, n = hits + right, n + of
        for part, mode in modes:
            part.training = mode
        accuracy = hits / n if n else None
        if accuracy is None:
            if not any("validation" in note for note in self.notes):
                self.notes.append(
                    "the sources have no images for validation: the last state is kept"
                )
            self._keep(None)
        elif self.best_accuracy is None or accuracy > self.best_accuracy:
            self._keep(accuracy)
        return accuracy

    def _keep(self, accuracy: float | None) -> None:
        self.best_accuracy, self.best_step = accuracy, self.n_steps
        self._best = {k: v.detach().cpu().clone() for k, v in self._tensors().items()}

    def _point(self, accuracy: float | None) -> None:
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        self.curve.append(
            {
                "step": self.n_steps,
                "images": self.images_seen,
                "seconds": round(self.seconds, 3),
                "loss": mean,
                "val_accuracy": accuracy,
            }
        )

    # --- state to and from tensors ---------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, value in self._state.items():
            if isinstance(value, nn.Module):
                found |= {f"{name}.{k}": v for k, v in value.state_dict().items()}
            elif isinstance(value, Tensor):
                found[name] = value
            elif not isinstance(value, torch.optim.Optimizer):
                raise ContractError(
                    f"run.steps: state {name!r} is a {type(value).__name__}; modules, tensors and "
                    "optimisers can be checkpointed."
                )
        return found

    def _load_into(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._state.items():
                if isinstance(value, nn.Module):
                    prefix = f"{name}."
                    value.load_state_dict(
                        {
                            k.removeprefix(prefix): v
                            for k, v in tensors.items()
                            if k.startswith(prefix)
                        }
                    )
                elif isinstance(value, Tensor):
                    value.copy_(tensors[name])

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        tensors = {f"state/{k}": v for k, v in self._tensors().items()}
        tensors |= {f"best/{k}": v for k, v in self._best.items()}
        groups: dict[str, Any] = {}
        for name, value in self._state.items():
            if not isinstance(value, torch.optim.Optimizer):
                continue
            saved = value.state_dict()
            plain: dict[str, dict[str, Any]] = {}
            for index, slots in saved["state"].items():
                for slot, content in slots.items():
                    if isinstance(content, Tensor):
                        tensors[f"optim/{name}/{index}/{slot}"] = content
                    else:
                        plain.setdefault(str(index), {})[slot] = content
            groups[name] = {"groups": saved["param_groups"], "plain": plain}
        meta = {
            "step": self.n_steps,
            "images": self.images_seen,
            "seconds": self.seconds,
            "curve": self.curve,
            "losses": self._losses,
            "best_step": self.best_step,
            "best_accuracy": self.best_accuracy,
            "resumed_at": self.resumed_at,
            "notes": self.notes,
            "optimisers": groups,
        }
        data = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        with atomic(self._checkpoint) as temporary:
            save_file(data, temporary, metadata={"medbench": json.dumps(meta)})

    def _resume(self) -> int:
        """The first step; the first process says whether a checkpoint serves."""
        group = self._group
        first = self._restore() if group.first else 0
        if group.world == 1:
            return first
        decided = int(group.sum(torch.tensor([first])))
        if not group.first and decided and self._restore() != decided:
            raise DataError(
                f"Process {group.rank + 1} of {group.world} could not read the checkpoint that the "
                f"first one goes on from, {self._checkpoint}: {'; '.join(self.notes)}."
            )
        group.wait()  # the first process may write the next checkpoint from here on
        group.from_first(self._tensors().values())
        return decided

    def _restore(self) -> int:
        if self._checkpoint is None or not self._checkpoint.exists():
            return 0
        try:
            with safe_open(self._checkpoint, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["medbench"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            own = {k: v.shape for k, v in self._tensors().items()}
            saved = {k[6:]: v.shape for k, v in tensors.items() if k.startswith("state/")}
            if own != saved:
                raise KeyError("other tensors")
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            self.notes.append(
                f"the checkpoint could not be read ({type(error).__name__}); training began anew"
            )
            return 0
        self._load_into({k[6:]: v for k, v in tensors.items() if k.startswith("state/")})
        self._best = {k[5:]: v for k, v in tensors.items() if k.startswith("best/")}
        for name, value in self._state.items():
            if isinstance(value, torch.optim.Optimizer):
                value.load_state_dict(_optimiser_state(name, tensors, meta["optimisers"][name]))
        self.n_steps, self.images_seen = meta["step"], meta["images"]
        self.seconds, self.curve, self._losses = meta["seconds"], meta["curve"], meta["losses"]
        self.best_step, self.best_accuracy = meta["best_step"], meta["best_accuracy"]
        self.notes = meta["notes"]
        self.resumed_at = [*meta["resumed_at"], self.n_steps]
        return self.n_steps


def _optimiser_state(name: str, tensors: Mapping[str, Tensor], saved: Any) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"optim/{name}/"):
            _, _, index, slot = key.split("/")
            state.setdefault(int(index), {})[slot] = tensor
    for index, slots in saved["plain"].items():
        state.setdefault(int(index), {}).update(slots)
    # JSON turned the betas into lists; torch compares groups by keys alone, and unpacks either.
    return {"state": state, "param_groups": saved["groups"]}
