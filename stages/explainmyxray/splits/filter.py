"""Leave out the label combinations that have too few images to stand in every split."""

from collections import Counter

import pandas as pd

from explainmyxray.errors import UserError


def drop_rare_combinations(reports: pd.DataFrame, min_samples: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows whose label combination has `min_samples` images, and the image counts of those dropped.

    Raises UserError where no combination has that many.
    """
    counts = Counter(reports["labels"])
    rare = {labels: counts[labels] for labels in sorted(counts) if counts[labels] < min_samples}
    common = reports[~reports["labels"].isin(rare)].reset_index(drop=True)
    if common.empty:
        raise UserError(f"no label combination has {min_samples} images: lower split.min_samples_per_class")
    return common, rare
