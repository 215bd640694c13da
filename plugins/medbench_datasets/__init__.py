"""Bundled datasets: MedMNIST, users' own files, Omniglot, and synthetic images without any file."""

from __future__ import annotations

from medbench.api import DatasetSpec, hookimpl


@hookimpl
def medbench_datasets() -> list[DatasetSpec]:
    """Every dataset this plugin brings."""
    from medbench_datasets import _specs, _target_specs

    return [
        _specs.SYNTHETIC,
        _specs.VESSELS,
        _specs.SCANS,
        _specs.PATIENTS,
        *_specs.medmnist(),
        *_specs.USER,
        _specs.ALIGNED,
        *_target_specs.TARGETS,
        _specs.OMNIGLOT,
    ]
