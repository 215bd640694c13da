"""The same work in another process: nothing but specs, arrays and seeds goes along."""

from __future__ import annotations

import multiprocessing
import queue
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medbench.conformance.check import Broken, in_words
from medbench.conformance.subject import Subject
from medbench.plugins import Entry, Plugin, Registry

_TIMEOUT_S = 120.0


def elsewhere(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work(*arguments)`` returns in a new process.

    Raises `Broken` with what went wrong there. `work` is a module-level function of medbench.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medbench.conformance.fresh", "medbench.backbones"])
    reader, writer = context.Pipe(duplex=False)
    settings = (list(sys.path), torch.get_num_threads())
    process = context.Process(target=_child, args=(writer, settings, work, arguments))
    process.start()
    writer.close()
    try:
        if not reader.poll(_TIMEOUT_S):
            raise Broken(f"another process gave no answer within {_TIMEOUT_S:.0f} s.")
        kind, found = reader.recv()
    except (EOFError, queue.Empty):
        process.join()
        raise Broken(f"another process died with exit code {process.exitcode}.") from None
    finally:
        if process.is_alive():
            process.join(5.0)
            process.kill()
        process.join()
        reader.close()
    if kind == "error":
        raise Broken(f"in another process it {found}")
    return found


def _child(
    writer: Any, settings: tuple[list[str], int], work: Callable[..., Any], arguments: Any
) -> None:
    sys.path[:], threads = settings[0], settings[1]
    torch.set_num_threads(threads)
    try:
        writer.send(("ok", work(*arguments)))
    except (Exception, SystemExit) as error:
        writer.send(("error", in_words(error)))


def scores_elsewhere(subject: Subject, learned: Mapping[str, Tensor], number: int) -> Any:
    """The answer to episode `number` of an instance that another process makes and prepares."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in learned.items()}
    backbone = subject.registry.get("backbones", subject.spec.conformance.backbone)
    asked = (subject.spec, dict(subject.params), subject.task_kind, backbone)
    found = elsewhere(_scores, *asked, arrays, number)
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


def _scores(
    spec: Any,
    params: dict[str, Any],
    task_kind: str,
    backbone: Entry,
    learned: Mapping[str, NDArray[Any]],
    number: int,
) -> Any:
    from medbench.conformance.trained import Bench

    plugin = Plugin("checked", "0", "-", "-", (), 0.0)
    # Of all plugins it needs the network's alone, and finding the others takes time.
    known = Registry(entries={"backbones": {backbone.name: backbone}})
    entry = Entry("algorithms", spec, plugin)
    bench = Bench(Subject(known, entry, spec.name, params, task_kind))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in learned.items()}
    answer = bench.scores(bench.form.episode(number), bench.prepared(learned=tensors))
    return answer.numpy() if isinstance(answer, Tensor) else answer
