"""Draw a stratified subset where there are more images than `max_samples`."""

import pandas as pd

from explainmyxray.settings import Split
from explainmyxray.splits.shuffle import shuffled_positions


def cap_images(reports: pd.DataFrame, split: Split, seed: int) -> pd.DataFrame:
    """At most `split.max_samples` rows; each label combination keeps its share, to the nearest image.

    Images are drawn, not patients, so that the shares come out exactly. A patient who loses images still is
    in one split.
    """
    if len(reports) <= split.max_samples:
        return reports
    stratified = split.stratify_by == "labels"
    strata = reports["labels"] if stratified else pd.Series("", index=reports.index)
    quotas = _quotas(strata.value_counts().sort_index(), split.max_samples)
    # Of each stratum, the first images in shuffled order, as many as its quota.
    shuffled = strata.iloc[shuffled_positions(reports["image"], seed)]
    rank_in_stratum = shuffled.groupby(shuffled).cumcount()
    drawn = shuffled[rank_in_stratum < shuffled.map(quotas)]
    return reports.loc[drawn.index.sort_values()].reset_index(drop=True)


def _quotas(counts: pd.Series, total: int) -> pd.Series:
    """`total` divided in proportion to `counts`: rounded down, then one more for the largest remainders."""
    exact = counts * total / counts.sum()
    quotas = exact.astype(int)
    by_remainder = (quotas - exact).sort_values(kind="stable").index
    quotas[by_remainder[: total - quotas.sum()]] += 1
    return quotas
