"""Reports that name a side, against mirrored films: what is on the left is then shown on the right."""

import re
from collections.abc import Sequence

from explainmyxray import settings
from explainmyxray.errors import UserError

# A side by its name, by a lobe that one lung alone has, or by the way a curve bends.
SIDE = re.compile(
    r"\b(?:(?:left|right)\w*|[RL][UL]L|RML|lingula\w*|middle lobe|(?:dextro|levo)\w*)\b", re.IGNORECASE
)
QUOTED = 60  # characters of a report around the side that a message shows


def refuse_mirrored_sides(reports: Sequence[str], augment: settings.Augment) -> None:
    """Raises UserError, before any work, where training reports name a side and films may be mirrored."""
    if not augment.horizontal_flip:
        return
    matches = [match for match in map(SIDE.search, reports) if match]
    if not matches:
        return
    first = matches[0]
    start = max(first.start() - QUOTED // 2, 0)
    quoted = " ".join(first.string[start : first.end() + QUOTED // 2].split())
    raise UserError(
        f"{len(matches)} of {len(reports)} training reports name a side (“…{quoted}…”), and "
        f"augment.horizontal_flip {augment.horizontal_flip:g} mirrors films, which would make them false: "
        "set augment.horizontal_flip=0.0"
    )
