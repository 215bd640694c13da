"""The progress of a run on the screen: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medbench.engine.coordinator import Event
    from medbench.jobs import Job
    from medbench.plan import Plan

_TELL_EVERY_S = 30.0


class Screen:
    """Live progress on a terminal; a line for every finished job elsewhere."""

    def __init__(self, plan: Plan, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._quiet = quiet
        self._console = Console(stderr=True)
        self._live = not quiet and self._console.is_terminal
        self._total = len(plan.trainings) + len(plan.cells)
        self._done = 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._all = self._progress.add_task("all jobs", total=None, note="")
        self._tasks: dict[str, Any] = {}
        self._told = time.monotonic()

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def watch(self, event: Event) -> None:
        """Show one event."""
        job = event.job
        if event.kind == "started":
            title = f"{event.where} {_brief(job)}" if event.where != "cpu" else _brief(job)
            self._tasks[job.key] = self._progress.add_task(title, total=1.0, note="starting")
        elif event.kind == "progress" and job.key in self._tasks:
            fraction = event.fraction if event.fraction >= 0 else None
            update: dict[str, Any] = {"note": event.text}
            if fraction is not None:
                update["completed"] = fraction
            self._progress.update(self._tasks[job.key], **update)
            # Where nothing moves on the screen, a line now and then tells that all is well.
            if not (self._live or self._quiet) and time.monotonic() - self._told > _TELL_EVERY_S:
                self._told = time.monotonic()
                self._console.print(
                    f"...         {_brief(job)}: {event.text}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
        elif event.kind == "again":
            if job.key in self._tasks:
                self._progress.remove_task(self._tasks.pop(job.key))
            if not self._quiet:
                self._line(event, then="; it is tried again")
        elif event.kind == "finished":
            if job.key in self._tasks:
                self._progress.remove_task(self._tasks.pop(job.key))
            self._done += 1
            self._progress.update(self._all, note=f"{self._done} finished")
            if not self._quiet:
                self._line(event)

    def _line(self, event: Event, then: str = "") -> None:
        kind = "training" if event.job.kind == "training" else "cell"
        text = f"{event.status:<11} {event.seconds:6.1f} s  {kind} {event.job.title}{then}"
        style = None if event.status == "ok" else "red"
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        if event.status != "ok":
            self._console.print(f"    {event.error}", style=style, markup=False, soft_wrap=True)


def _brief(job: Job) -> str:
    return ("train " if job.kind == "training" else "") + job.title[:60]
