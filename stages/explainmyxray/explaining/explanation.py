"""What explaining one image gives; nothing heavy is imported here, so that a command can start with it."""

from dataclasses import dataclass

ADAPTER = "models/adapter"  # what `make repro` leaves
NOTICE = "For research only, not a medical device: what is written here was never checked by a radiologist."


@dataclass(frozen=True)
class Explanation:
    """What the model writes about one image, or why it writes nothing (`problem`)."""

    image: str
    report: str = ""
    findings: tuple[str, ...] = ()  # asserted by the report
    probabilities: dict[str, float] | None = (
        None  # of each finding: the share of sampled reports that assert it
    )
    agreement: float | None = None  # the share of sampled reports that assert exactly the report's findings
    remarks: tuple[str, ...] = ()  # what is wrong with the report as a text
    warning: str = ""  # why not to trust the report: what is wrong with the image
    problem: str = ""
