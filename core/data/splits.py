"""Stratified draws of validation, test and folds, in which clusters of images stay in one split.

A cluster is what must not be divided: equal images, and images of one patient, video or flight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..seeding import stream

Strata = Sequence[Sequence[int]]
"""The classes of each image, any number of them."""

MAX_CANDIDATES = 64
"""Clusters that are compared for each that is drawn."""
MIN_CLUSTERS = 3
"""Clusters that a class needs for training, validation and test to have one each."""


def cluster(count: int, keys: Iterable[Sequence[str | None]]) -> NDArray[np.int64]:
    """(count,): the cluster of each image, from 0 in the order of their first images.

    Images that share a key are in one cluster. Each of ``keys`` has a key for every image, None for no key.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not count:
        return np.zeros(0, dtype=np.int64)
    pairs: list[tuple[int, int]] = []
    for values in keys:
        first: dict[str, int] = {}
        pairs += ((first.setdefault(key, index), index) for index, key in enumerate(values) if key is not None)
    ones, others = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs), dtype=bool), (ones, others)), shape=(count, count))
    _, components = connected_components(graph, directed=False)
    _, firsts, numbers = np.unique(components, return_index=True, return_inverse=True)
    return np.asarray(firsts.argsort().argsort()[numbers], dtype=np.int64)


def rare_classes(strata: Strata, clusters: NDArray[np.int64] | None = None) -> dict[int, int]:
    """Classes too rare to be in training, validation and test at once, with their numbers of clusters."""
    found = _Clusters.of(strata, clusters)
    return {label: len(members) for label, members in sorted(found.members.items()) if len(members) < MIN_CLUSTERS}


def stratified_draw(
    strata: Strata,
    count: int,
    seed: int,
    name: str,
    clusters: NDArray[np.int64] | None = None,
    *,
    required: Collection[int] | None = None,
    later: int = 0,
    all_of_a_class: bool = False,
) -> list[int]:
    """Sorted indices of ``count`` images, stratified by class; a cluster is drawn as one.

    With one class per image, each class gives its share, rounded. With several classes, or clusters, those are drawn first
    whose classes lack most (iterative stratification, Sechidis et al. 2011, with the wanted shares). Of the ``required``
    classes (None: those in three clusters or more) at least one is drawn, where ``count`` allows it, and one is left for
    training and for each of ``later`` draws. ``all_of_a_class`` may be drawn where ``count`` can't be reached otherwise.
    Clusters of several images may give another number than ``count``, the nearest that was found; the result is empty where
    each cluster holds all of a class.
    """
    found = _Clusters.of(strata, clusters)
    wanted = {label for label, members in found.members.items() if len(members) >= MIN_CLUSTERS}
    wanted = wanted if required is None else set(required) & found.members.keys()
    leave = {label: 0 if label < 0 else 1 + later if label in wanted else 1 for label in found.members}
    draw = _Draw(found, count, wanted, leave, stream(seed, name), all_of_a_class, _order(found, seed, name))
    drawn = draw.by_shares() if found.simple else draw.by_lack()
    chosen = set(drawn)
    return [index for index, number in enumerate(found.numbers.tolist()) if number in chosen]


def stratified_folds(
    strata: Strata, folds: int, seed: int, clusters: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """(N,): the fold of each image, from 0; -1 for clusters that hold all of a class, which always stay in training.

    Each class is spread as evenly as the clusters allow (iterative stratification, Sechidis et al. 2011).
    """
    found = _Clusters.of(strata, clusters)
    generator = stream(seed, "folds")
    want = {label: np.full(folds, total / folds) for label, total in found.totals.items()}
    room = np.full(folds, sum(found.sizes) / folds)
    fold_of = np.full(len(found.sizes), -2, dtype=np.int64)
    for members in found.members.values():
        if len(members) == 1:
            fold_of[members[0]] = -1
    for label in sorted(found.members, key=lambda label: (len(found.members[label]), label)):
        open_ones = [one for one in generator.permutation(found.members[label]).tolist() if fold_of[one] == -2]
        for one in sorted(open_ones, key=lambda one: -found.counts[one][label]):
            rank = np.lexsort((generator.random(folds), -room, -want[label].round(9)))
            fold = int(rank[0])
            fold_of[one] = fold
            room[fold] -= found.sizes[one]
            for other, many in found.counts[one].items():
                want[other][fold] -= many
    return fold_of[found.numbers]


def stratified_order(labels: Sequence[int], seed: int, name: str) -> list[int]:
    """All images in an order whose every prefix is as even over the classes as the data allows.

    The classes take turns, in an order that is drawn each round; within a class the order is drawn. Classes give equal
    shares, not in proportion to their size; a class that has run out is skipped.
    """
    generator = stream(seed, name)
    members: dict[int, list[int]] = defaultdict(list)
    for index in generator.permutation(len(labels)):
        members[labels[index]].append(int(index))
    order: list[int] = []
    classes = sorted(members)
    while len(order) < len(labels):
        for label in generator.permutation(classes):
            if members[int(label)]:
                order.append(members[int(label)].pop())
    return order


@dataclass(frozen=True)
class _Clusters:
    """Clusters of images: ``numbers`` (N,) of each image's; for each cluster its size and its images of each class."""

    numbers: NDArray[np.int64]
    sizes: list[int]
    counts: list[Counter[int]]
    members: dict[int, list[int]]
    """the clusters of each class; images without one have the class -1"""
    cardinalities: list[Counter[int]]
    """how many images of each cluster have one class, two, ...; otherwise images of many classes would be drawn first"""
    simple: bool
    """whether each is one image of one class"""
    labels: list[int]
    """the first class of each image"""

    @classmethod
    def of(cls, strata: Strata, clusters: NDArray[np.int64] | None) -> _Clusters:
        numbers = np.arange(len(strata)) if clusters is None else clusters
        sizes: list[int] = np.bincount(numbers, minlength=0).tolist()
        shared: dict[tuple[int, ...], tuple[Counter[int], Counter[int]]] = {}
        both = [(Counter[int](), Counter[int]()) if size > 1 else None for size in sizes]
        for labels, number in zip(strata, numbers.tolist(), strict=True):
            classes = tuple(sorted(set(labels))) or (-1,)
            cardinality = -2 - len(set(labels))
            if (own := both[number]) is None:  # of millions of images, most are alone, and many have the same classes
                if classes not in shared:
                    shared[classes] = Counter(classes), Counter([cardinality])
                both[number] = shared[classes]
            else:
                own[0].update(classes)
                own[1][cardinality] += 1
        counts = [own[0] for own in both if own is not None]
        cardinalities = [own[1] for own in both if own is not None]
        members: dict[int, list[int]] = defaultdict(list)
        for number, found in enumerate(counts):
            for label in found:
                members[label].append(number)
        simple = all(size == 1 and len(found) == 1 for size, found in zip(sizes, counts, strict=True))
        first = [min(labels, default=-1) for labels in strata]
        return cls(numbers, sizes, counts, dict(members), cardinalities, simple, first)

    @cached_property
    def totals(self) -> Counter[int]:
        """Images of each class."""
        found: Counter[int] = Counter()
        for counts in self.counts:
            found.update(counts)
        return found


def _shares(
    totals: Sequence[int], count: int, least: Sequence[int], most: Sequence[int], ties: NDArray[np.float64]
) -> list[int]:
    """Integers in proportion to ``totals`` whose sum is ``count``, by largest remainders, within bounds where they allow it."""
    wanted = np.array(totals) * (count / max(1, sum(totals))) + 1e-6 * ties
    low, high = np.array(least), np.array(most)
    if low.sum() > count:
        low = np.zeros_like(low)
    shares = np.clip(np.floor(wanted).astype(np.int64), low, high)
    while (short := count - int(shares.sum())) != 0:
        step = 1 if short > 0 else -1
        able = shares < high if short > 0 else shares > low
        if not able.any():
            break
        shares[np.where(able, step * (wanted - shares), -np.inf).argmax()] += step
    return [int(share) for share in shares]


def _order(found: _Clusters, seed: int, name: str) -> list[int]:
    """All clusters in a drawn order; with one class per image that of ``stratified_order``.

    Earlier versions drew by it: for classes of equal sizes the splits stay the same.
    """
    if any(sum(counts.values()) != size for counts, size in zip(found.counts, found.sizes, strict=True)):
        return [int(one) for one in stream(seed, name).permutation(len(found.sizes))]
    labels = found.labels
    order = stratified_order(labels, seed, name)
    last = set({labels[index]: index for index in order}.values())
    numbers = found.numbers.tolist()
    both = [[index for index in order if index not in last], [index for index in order if index in last]]
    return list(dict.fromkeys(numbers[index] for part in both for index in part))


@dataclass
class _Draw:
    """A draw of ``count`` images from clusters: of ``wanted`` classes at least one, ``leave`` clusters of each class remain."""

    found: _Clusters
    count: int
    wanted: set[int]
    leave: dict[int, int]
    generator: np.random.Generator
    all_of_a_class: bool
    order: list[int]
    """all clusters in the order in which those of one class are drawn"""

    def shares(self) -> dict[int, int]:
        """How many images of each class are drawn, where each image has one class."""
        classes = sorted(self.found.members)
        totals = [self.found.totals[label] for label in classes]
        most = [max(0, total - self.leave[label]) for label, total in zip(classes, totals, strict=True)]
        if sum(most) < self.count:
            most = [total - 1 for total in totals]
        if sum(most) < self.count and self.all_of_a_class:
            most = totals
        least = [min(int(label in self.wanted), high) for label, high in zip(classes, most, strict=True)]
        early = Counter(label for one in self.order[: self.count] for label in self.found.counts[one])
        ties = np.array([early[label] for label in classes]) / max(1, self.count)
        return dict(zip(classes, _shares(totals, self.count, least, most, ties), strict=True))

    def by_shares(self) -> list[int]:
        """Clusters of one image of one class each: the share of each class, drawn within it."""
        left = self.shares()
        drawn: list[int] = []
        for one in self.order:
            (label,) = self.found.counts[one]
            if left[label]:
                left[label] -= 1
                drawn.append(one)
        return drawn

    def by_lack(self) -> list[int]:
        """Clusters of any kind, first those whose classes lack most, starting with the rarest class."""
        found, count = self.found, self.count
        total = sum(found.sizes)
        single = all(sum(counts.values()) == size for counts, size in zip(found.counts, found.sizes, strict=True))
        features = found.counts
        if single:
            need = {label: float(share) for label, share in self.shares().items()}
        else:
            features = [one + other for one, other in zip(found.counts, found.cardinalities, strict=True)]
            everything: Counter[int] = Counter()
            for one in features:
                everything.update(one)
            need = {
                feature: max(count * many / max(1, total), float(feature in self.wanted))
                for feature, many in everything.items()
            }
        weight = {label: 1 / max(1.0, lack) for label, lack in need.items()}
        place = {one: number for number, one in enumerate(self.order)}
        queues = {label: sorted(members, key=place.__getitem__) for label, members in found.members.items()}
        queue_of_all = list(self.order)
        rest = {label: len(members) for label, members in found.members.items()}
        drawn: set[int] = set()
        left = count

        def fits(one: int, leave: Mapping[int, int]) -> bool:
            """Whether the cluster brings the number of images nearer to ``count``, and enough of its classes remain."""
            near = found.sizes[one] < 2 * left or found.sizes[one] == 1
            return near and all(rest[label] > leave[label] for label in found.counts[one])

        def cost(one: int) -> float:
            change = sum((many - 2 * need[label]) * many * weight[label] for label, many in features[one].items())
            return float(change + (found.sizes[one] - 2 * left) * found.sizes[one] / max(1, count))

        def best(queue: list[int], leave: Mapping[int, int]) -> int | None:
            """The cluster that brings all classes nearest to what they need, among the first that remain."""
            able: list[int] = []
            passed = 0
            for one in queue:
                passed += one in drawn
                if one not in drawn and fits(one, leave):
                    if single and all(many <= need[label] for label, many in found.counts[one].items()):
                        return one
                    able.append(one)
                    if len(able) == MAX_CANDIDATES:
                        break
            if passed > MAX_CANDIDATES:
                queue[:] = [one for one in queue if one not in drawn]
            return min(able, key=cost, default=None)

        def draw(one: int) -> None:
            nonlocal left
            drawn.add(one)
            left -= found.sizes[one]
            for label, many in features[one].items():
                need[label] -= many
            for label in found.counts[one]:
                rest[label] -= 1

        for label in sorted(found.members, key=lambda label: (need[label], label)):
            missing = label in self.wanted and not any(one in drawn for one in found.members[label])
            while left > 0 and (missing or need[label] >= 0.5):
                chosen = best(queues[label], self.leave)
                if chosen is None or (cost(chosen) >= 0 and not missing):
                    break
                draw(chosen)
                missing = False
        for leave in (
            self.leave,
            {label: min(1, self.leave[label]) for label in rest},
            dict.fromkeys(rest, 0) if self.all_of_a_class else None,
        ):
            while left > 0 and leave is not None and (chosen := best(queue_of_all, leave)) is not None:
                draw(chosen)
        if not drawn:
            able = [one for one in queue_of_all if all(rest[label] > 1 for label in found.counts[one] if label >= 0)]
            able = able or (queue_of_all if self.all_of_a_class else [])
            drawn.update(sorted(able, key=lambda one: found.sizes[one])[:1])
        return list(drawn)


def rarest_first_order(labels: Sequence[Sequence[int]], seed: int, name: str) -> list[int]:
    """All images, each with any number of classes, in an order whose every prefix has all classes about equally often.

    Each step draws an image of the class that has been drawn least so far and has images left (iterative stratification,
    Sechidis et al. 2011, with even shares); images without a class count as a class of their own.
    """
    generator = stream(seed, name)
    none = max((label for image in labels for label in image), default=-1) + 1
    members: list[list[int]] = [[] for _ in range(none + 1)]
    for index in generator.permutation(len(labels)):
        for label in labels[index] or (none,):
            members[label].append(int(index))
    # a share of one draw breaks ties between classes, so that none is always first
    came = generator.random(none + 1) / 2
    drawn = np.zeros(len(labels), dtype=bool)
    order: list[int] = []
    while len(order) < len(labels):
        label = int(came.argmin())
        while members[label] and drawn[members[label][-1]]:
            members[label].pop()
        if not members[label]:
            came[label] = np.inf
            continue
        index = members[label].pop()
        drawn[index] = True
        order.append(index)
        came[list(labels[index]) or [none]] += 1
    return order
