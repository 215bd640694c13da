"""One function for each tracker, which writes a cell as a run of its own; none needs a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from medbench_trackers.cells import Cell


def tensorboard(cell: Cell, folder: str) -> None:
    """Write an event file below `folder`: ``tensorboard --logdir FOLDER`` shows it.

    Not by torch's writer, so that a process without torch stays one.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def event(step: int, values: Mapping[str, float]) -> Event:
        shown = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        return Event(step=step, summary=Summary(value=shown))

    place = Path(folder) / cell.group / f"{_file_name(cell.name)}-{cell.key[:12]}"
    writer = EventFileWriter(str(place))
    for images, values in cell.curve:
        writer.add_event(event(images, {f"training/{k}": v for k, v in values.items()}))
    writer.add_event(event(0, {**cell.metrics, "ok": float(cell.status == "ok")}))
    writer.close()


def mlflow(cell: Cell, folder: str) -> None:
    """Write a run of the experiment that is called as the suite.

    `folder` is a folder of MLflow's files, or the address of a tracking store (``sqlite:///...``).
    """
    # MLflow asks for this word before it writes to a folder, which is what was asked for here.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(
        tracking_uri=folder if "://" in folder else Path(folder).resolve().as_uri()
    )
    known = client.get_experiment_by_name(cell.group)
    experiment = known.experiment_id if known else client.create_experiment(cell.group)
    run = client.create_run(experiment, run_name=cell.name).info.run_id
    curve = [
        Metric(f"training/{k}", v, 0, images)
        for images, values in cell.curve
        for k, v in values.items()
    ]
    client.log_batch(
        run,
        metrics=[Metric(k, v, 0, 0) for k, v in cell.metrics.items()],
        params=[Param(k, v) for k, v in cell.parameters.items()],
        tags=[RunTag("medbench.key", cell.key), RunTag("medbench.status", cell.status)],
    )
    # A batch holds at most a thousand.
    for start in range(0, len(curve), 1000):
        client.log_batch(run, metrics=curve[start : start + 1000])
    client.set_terminated(run, "FINISHED" if cell.status == "ok" else "FAILED")


def wandb(cell: Cell, folder: str) -> None:
    """Write an offline run in `folder`, for ``wandb sync`` to send when somebody wants it."""
    import wandb as library

    Path(folder).mkdir(parents=True, exist_ok=True)
    run = library.init(
        project=cell.group,
        name=cell.name,
        id=cell.key or None,
        dir=folder,
        mode="offline",
        config={**cell.parameters, "status": cell.status},
        reinit="create_new",
        settings=library.Settings(silent=True, console="off", x_disable_stats=True),
    )
    for images, values in cell.curve:
        run.log({f"training/{k}": v for k, v in values.items()} | {"images": images})
    run.summary.update(dict(cell.metrics))
    run.finish(exit_code=0 if cell.status == "ok" else 1)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)[:120]


WRITERS: dict[str, Callable[[Cell, str], None]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}
