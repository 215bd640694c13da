"""What each setting of a protocol tests on, and what it may train on for that; pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medbench.api import derive_seed
from medbench.draws import Ints
from medbench.episodes import Pool
from medbench.errors import ProtocolError, did_you_mean
from medbench.opened import Opened
from medbench.personalised import other_patients, tested_patients
from medbench.pools import SourceSet, all_classes, source_set, test_pool
from medbench.protocols import TARGETED, Fractions, Protocol

Group = tuple[Opened, str | None, Pool, list[SourceSet]]
"""A dataset, the site that is tested or None, what is tested, and what may be trained on for it."""


def groups_of(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    """What a protocol tests on, by its setting. Raises `ProtocolError` where nothing is left."""
    build = {
        "within_dataset": _within_dataset,
        "cross_domain": _cross_domain,
        "leave_one_site_out": _leave_one_site_out,
        "support_only": _support_only,
        "personalised": _personalised,
    }[protocol.setting]
    return build(protocol, datasets)


def tested(protocol: Protocol, opened: Opened, site: str | None) -> Pool:
    """What the episodes of a target are drawn from: the test classes, or the images of a site."""
    dataset = opened.dataset
    if protocol.setting == "personalised":
        return tested_patients(protocol, opened)
    if protocol.setting == "within_dataset":
        classes = _class_split(protocol, opened)[2]
    else:
        classes = all_classes(opened)
    among = np.arange(len(dataset.labels))
    if site is not None:
        assert dataset.sites is not None
        among = np.flatnonzero(dataset.sites == dataset.info.site_names.index(site))
    return test_pool(opened, among, classes)


def _within_dataset(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    groups: list[Group] = []
    for opened in datasets:
        train, val, test = _class_split(protocol, opened)
        pool = tested(protocol, opened, None)
        everything = np.arange(len(opened.dataset.labels))
        apart = _apart(protocol, opened, everything, pool, test)
        source = source_set(protocol, opened, None, apart, train, val)
        groups.append((opened, None, pool, [source] if source else []))
        _require_source(protocol, groups[-1])
    return groups


def _cross_domain(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    of_sources = "classification" if protocol.task_kind == "multilabel" else protocol.task_kind
    sources = {
        id(d): source_set(protocol, d, None, np.arange(len(d.dataset.labels)), all_classes(d), None)
        for d in datasets
        if d.dataset.info.task_kind == of_sources
    }
    groups: list[Group] = []
    for held_out in datasets:
        if held_out.dataset.info.task_kind != protocol.task_kind:
            continue
        domain = held_out.dataset.info.domain
        kept = [
            source
            for d in datasets
            for source in [sources.get(id(d))]
            if source is not None and d is not held_out and d.dataset.info.domain != domain
        ]
        groups.append((held_out, None, tested(protocol, held_out, None), kept))
        if not protocol.without_sources:
            _require_source(protocol, groups[-1])
    return groups


def _leave_one_site_out(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    groups: list[Group] = []
    for opened in datasets:
        dataset = opened.dataset
        names = dataset.info.site_names
        if dataset.sites is None or len(names) < 2:
            raise ProtocolError(
                f"protocol {protocol.name} leaves one site out, and dataset {opened.name} names "
                f"{len(names)} sites; it needs at least two."
            )
        every = all_classes(opened)
        by_site = [np.flatnonzero(dataset.sites == i) for i in range(len(names))]
        for i, site in enumerate(names):
            pool = tested(protocol, opened, site)
            kept = [
                source
                for j, other in enumerate(names)
                if j != i
                for among in [_apart(protocol, opened, by_site[j], pool, [])]
                for source in [source_set(protocol, opened, other, among, every, None)]
                if source is not None
            ]
            groups.append((opened, site, pool, kept))
    if protocol.targets is None:
        for group in groups:
            _require_source(protocol, group)
    return groups


def _support_only(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    groups: list[Group] = []
    for opened in datasets:
        sites: tuple[str | None, ...] = (None,)
        if protocol.sites_apart:
            sites = opened.dataset.info.site_names
            if opened.dataset.sites is None or not sites:
                raise ProtocolError(
                    f"protocol {protocol.name} keeps sites apart, and dataset {opened.name} names "
                    "none. Tell its site column, or set sites_apart: false."
                )
        groups += [(opened, site, tested(protocol, opened, site), []) for site in sites]
    return groups


def _personalised(protocol: Protocol, datasets: list[Opened]) -> list[Group]:
    return [
        (opened, None, tested(protocol, opened, None), [other_patients(protocol, opened)])
        for opened in datasets
    ]


def _apart(
    protocol: Protocol, opened: Opened, among: Ints, pool: Pool, asked: Sequence[int]
) -> Ints:
    """Of the images in `among` those that may be meta-trained on beside a target in one dataset.

    An image with masks or boxes may show several classes: what shows one of `asked` is left out
    (the second setting of Roy et al. 2020), and all images of a patient who is asked about. Where
    an image has one class, its class or site keeps it apart.
    """
    if protocol.task_kind not in TARGETED:
        return among
    dataset = opened.dataset
    kept = among[~dataset.labels[among][:, list(asked)].any(axis=1)]
    if dataset.patients is not None:
        rows = np.concatenate([pool.members(1, i) for i in range(pool.n_classes)])
        kept = kept[~np.isin(dataset.patients[kept], dataset.patients[rows])]
    return kept


def _require_source(protocol: Protocol, group: Group) -> None:
    opened, site, _, sources = group
    if not sources:
        name = opened.name + (f"@{site}" if site else "")
        shape = protocol.train
        needs = "another domain than the target, two classes"
        if protocol.task_kind in TARGETED:
            needs = "another domain, or images that show no class and no patient of the test"
        raise ProtocolError(
            f"protocol {protocol.name}, target {name}: nothing is left to meta-train on. A source "
            f"needs {needs}, and {shape.shot + shape.query} images a class ({shape.shot} support, "
            f"{shape.query} query)."
        )


def _class_split(protocol: Protocol, opened: Opened) -> tuple[list[int], list[int], list[int]]:
    wanted = protocol.class_split
    info = opened.dataset.info
    if isinstance(wanted, Fractions):
        total = wanted.train + wanted.val + wanted.test
        if total > len(info.label_names):
            raise ProtocolError(
                f"protocol {protocol.name}: class_split asks for {total} classes, and "
                f"{opened.name} has {len(info.label_names)}."
            )
        # Ordered by a hash of the class's name: the same classes whatever the file's order.
        order = sorted(
            range(len(info.label_names)),
            key=lambda c: derive_seed("class-split", wanted.seed, info.label_names[c]),
        )
        a, b = wanted.train, wanted.train + wanted.val
        return sorted(order[:a]), sorted(order[a:b]), sorted(order[b:total])
    assert wanted is not None
    if wanted not in info.class_splits:
        raise ProtocolError(
            f"protocol {protocol.name}: dataset {opened.name} has no class split {wanted!r}."
            f"{did_you_mean(wanted, info.class_splits)}"
        )
    split = info.class_splits[wanted]
    return list(split.train), list(split.val), list(split.test)
