"""Puts whole groups of rows into splits so that each class comes near its share in each split.

After iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data", ECML PKDD
2011): generate_batch, each example to the split that wants it most. Here whole groups instead of examples, the largest first,
and the growth of a chi-squared distance instead of the largest deficit. scikit-learn's StratifiedGroupKFold has equal
folds only, so that 0.7, 0.15 and 0.15 are out of its reach, and one class a row.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

ROW = ""  # the class that every row has
SWEEPS = 5  # how often each group may move again once all are placed


class _Table:
    """How many rows of each class stand in each split, beside how many should."""

    def __init__(self, contents: list[Counter], shares: Sequence[float]):
        totals = sum(contents, Counter())
        self.target = [{name: n * share for name, n in totals.items()} for share in shares]
        self.now = [Counter() for _ in shares]
        self.groups = [Counter() for _ in shares]  # groups that hold the class

    def put(self, content: Counter, place: int, sign: int = 1) -> None:
        for name, n in content.items():
            self.now[place][name] += sign * n
            self.groups[place][name] += sign

    def cost(self, content: Counter, place: int) -> float:
        """How much the chi-squared distance to the targets grows with `content` in `place`."""
        now, target = self.now[place], self.target[place]
        return sum(n * (n + 2 * (now[name] - target[name])) / target[name] for name, n in content.items())

    def best(self, content: Counter) -> int:
        return min(range(len(self.now)), key=lambda place: self.cost(content, place))


def assign(
    members: list[list[int]], classes: Sequence[Sequence[str]] | None, shares: Sequence[float]
) -> list[int]:
    """The number of the split for each group; `members` lists the rows of each, `classes` the classes of each row.

    No split is empty where there are as many groups, and the first class of a row comes to each split where enough
    groups hold it and moving groups can do it. Groups of one size go in the order given, so give them shuffled. Without
    classes, sizes alone are balanced.
    """
    contents = [Counter({ROW: len(rows)}) for rows in members]
    for content, rows in zip(contents, members):
        content.update(name for row in rows for name in (classes[row] if classes else ()))
    order = sorted(range(len(members)), key=lambda group: -len(members[group]))
    table, place = _Table(contents, shares), [0] * len(members)
    for group in order:
        place[group] = table.best(contents[group])
        table.put(contents[group], place[group])
    needed = Counter({ROW: 0})
    _cover(order, contents, table, place, needed)  # first of all, no split is empty
    needed.update(row[0] for row in classes or ())
    _cover(order, contents, table, place, needed)
    for _ in range(SWEEPS):
        if not _sweep(order, contents, table, place, needed):
            break
    return place


def _spare(content: Counter, table: _Table, place: int, needed: Counter) -> bool:
    """Whether a group with `content` can leave `place` without the last of a class that is `needed` there."""
    return all(table.groups[place][name] > 1 for name in content if name in needed)


def _sweep(
    order: list[int], contents: list[Counter], table: _Table, place: list[int], needed: Counter
) -> int:
    """Move each group that its split can spare to the split where it does best; how many moved."""
    moved = 0
    for group in order:
        content, old = contents[group], place[group]
        if not _spare(content, table, old, needed):
            continue
        table.put(content, old, -1)
        best = table.best(content)
        if table.cost(content, best) < table.cost(content, old) - 1e-9:
            place[group], moved = best, moved + 1
        table.put(content, place[group])
    return moved


def _cover(
    order: list[int], contents: list[Counter], table: _Table, place: list[int], needed: Counter
) -> None:
    """Bring each class of `needed` to every split by moving groups that their split can spare, rarest class first."""
    holders = defaultdict(list)
    for group in order:
        for name in contents[group]:
            holders[name].append(group)
    for name in sorted(needed, key=lambda name: (needed[name], name)):
        for empty in (each for each in range(len(table.now)) if not table.now[each][name]):
            if spare := [
                each for each in holders[name] if _spare(contents[each], table, place[each], needed)
            ]:
                group = min(spare, key=lambda each: table.cost(contents[each], empty))
                table.put(contents[group], place[group], -1)
                table.put(contents[group], empty)
                place[group] = empty


def missing(strata: Sequence[str], places: Sequence[str], splits: Sequence[str]) -> dict[str, int]:
    """The strata that one of `splits` lacks, and how many lack it."""
    seen = defaultdict(set)
    for stratum, place in zip(strata, places):
        seen[stratum].add(place)
    return {
        stratum: len(splits) - len(seen[stratum])
        for stratum in sorted(seen)
        if len(seen[stratum]) < len(splits)
    }
