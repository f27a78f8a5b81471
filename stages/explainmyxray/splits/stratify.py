"""Assign whole groups of rows to splits so that each class comes near its share in each split.

After iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data",
ECML PKDD 2011): greedily, each example to the split that wants it most. Here groups take the place of
examples, the largest first, and the growth of a chi-squared distance that of the largest deficit.

scikit-learn's StratifiedGroupKFold makes equal folds: shares of 0.9, 0.05 and 0.05 are 20 of them, and NIH's
rare label combinations then miss from val and test. docs/splitting.md has the comparison.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

ANY = ""  # the class that every row has
MAX_SWEEPS = 5  # how often all groups are reconsidered once each has been assigned


class Allocation:
    """Which split each group is in, and how many rows and groups of each class every split holds.

    `contents` counts the rows of each class in each group. A split of share s should hold s of each class's
    rows.
    """

    def __init__(self, contents: list[Counter], shares: Sequence[float]):
        totals = sum(contents, Counter())
        self.contents = contents
        self.split_of: list[int | None] = [None] * len(contents)
        self.target = [{name: count * share for name, count in totals.items()} for share in shares]
        self.rows = [Counter() for _ in shares]
        self.groups = [Counter() for _ in shares]

    def add(self, group: int, split: int) -> None:
        self._count(group, split, 1)
        self.split_of[group] = split

    def remove(self, group: int) -> None:
        self._count(group, self.split_of[group], -1)
        self.split_of[group] = None

    def _count(self, group: int, split: int, sign: int) -> None:
        for name, count in self.contents[group].items():
            self.rows[split][name] += sign * count
            self.groups[split][name] += sign

    def cost(self, group: int, split: int) -> float:
        """How much the chi-squared distance to the targets would grow with `group` in `split`.

        For n rows more of a class with r rows and target t: ((r + n - t)^2 - (r - t)^2) / t = n (n + 2 (r -
        t)) / t.
        """
        rows, target = self.rows[split], self.target[split]
        growth = (
            count * (count + 2 * (rows[name] - target[name])) / target[name]
            for name, count in self.contents[group].items()
        )
        return sum(growth)

    def cheapest_split(self, group: int) -> int:
        return min(range(len(self.rows)), key=lambda split: self.cost(group, split))

    def can_leave(self, group: int, required: Counter) -> bool:
        """Whether the split of `group` has another group of each `required` class that `group` holds."""
        groups = self.groups[self.split_of[group]]
        return all(groups[name] > 1 for name in self.contents[group] if name in required)


def assign_groups(
    members: list[list[int]], classes: Sequence[Sequence[str]] | None, shares: Sequence[float]
) -> list[int]:
    """The number of the split for each group.

    `members` lists the rows of each group, `classes` the classes of each row (None: balance sizes alone),
    `shares` the part of the rows that each split should get. No split stays empty where there are as many
    groups, and the first class of a row comes to each split where enough groups hold it and moving groups can
    do it. Groups of one size are taken in the order given, so give them shuffled.
    """
    allocation = Allocation([_count_classes(rows, classes) for rows in members], shares)
    # 1) Greedily, the largest groups first: small ones can still even out what large ones leave.
    order = sorted(range(len(members)), key=lambda group: -len(members[group]))
    for group in order:
        allocation.add(group, allocation.cheapest_split(group))
    # 2) No split is empty: this comes before any class.
    required = Counter({ANY: 0})
    _cover(allocation, order, required)
    # 3) Each class that comes first in a row is in each split.
    if classes:
        required.update(row_classes[0] for row_classes in classes)
    _cover(allocation, order, required)
    # 4) Improve, without undoing 2) and 3), until no group moves.
    for _ in range(MAX_SWEEPS):
        if not _sweep(allocation, order, required):
            break
    return allocation.split_of


def _count_classes(rows: list[int], classes: Sequence[Sequence[str]] | None) -> Counter:
    """How many of `rows` have each class."""
    counts = Counter({ANY: len(rows)})
    if classes:
        for row in rows:
            counts.update(classes[row])
    return counts


def _cover(allocation: Allocation, order: list[int], required: Counter) -> None:
    """Bring each `required` class, the rarest first, to every split by moving the group that costs least."""
    holders = defaultdict(list)
    for group in order:
        for name in allocation.contents[group]:
            holders[name].append(group)
    for name in sorted(required, key=lambda name: (required[name], name)):
        for split, rows in enumerate(allocation.rows):
            if rows[name]:
                continue
            movable = [group for group in holders[name] if allocation.can_leave(group, required)]
            if movable:
                _move(allocation, min(movable, key=lambda group: allocation.cost(group, split)), split)


def _move(allocation: Allocation, group: int, split: int) -> None:
    allocation.remove(group)
    allocation.add(group, split)


def _sweep(allocation: Allocation, order: list[int], required: Counter) -> int:
    """Move each group to the split where it costs least, if its own can spare it; returns how many moved."""
    moved = 0
    for group in order:
        if not allocation.can_leave(group, required):
            continue
        old = allocation.split_of[group]
        allocation.remove(group)  # so that staying and moving are compared alike
        new = allocation.cheapest_split(group)
        if allocation.cost(group, new) < allocation.cost(group, old) - 1e-9:
            moved += 1
        else:
            new = old
        allocation.add(group, new)
    return moved


def count_missing(classes: Sequence[str], splits: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """How many of the splits called `names` lack a class, for each class that one of them lacks.

    `classes` and `splits` hold the class and the split's name of each row.
    """
    splits_with = defaultdict(set)
    for name, split in zip(classes, splits):
        splits_with[name].add(split)
    lacking = {name: len(names) - len(splits_with[name]) for name in sorted(splits_with)}
    return {name: count for name, count in lacking.items() if count}
