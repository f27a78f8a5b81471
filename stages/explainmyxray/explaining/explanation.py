"""What explaining one image gives; nothing heavy is imported here, so that a command can start with it."""

from dataclasses import dataclass

ADAPTER = "models/adapter"  # what `make repro` leaves
# The remark on a text that names no finding because it is none of a chest X-ray.
NO_REPORT = "this text is no report: it says nothing of a chest X-ray"
NOTICE = "For research only, not a medical device: what is written here was never checked by a radiologist."
NOT_MEASURED = "what these shares are worth was not measured for this adapter"
NOT_FOR_THIS_IMAGE = "what these shares are worth was measured on images that no warning is given of"


@dataclass(frozen=True)
class LikeFindings:
    """Test findings that a like share of the sampled reports named: how many, and what share was there."""

    findings: int
    present: float


@dataclass(frozen=True)
class Explanation:
    """What the model writes about one image, or why it writes nothing (`problem`)."""

    image: str
    report: str = ""
    findings: tuple[str, ...] = ()  # asserted by the report
    # Of each finding the share of sampled reports that assert it; None where nothing was sampled.
    probabilities: dict[str, float] | None = None
    # What such a probability was worth on the test split; None where that is not known, or not of this image.
    measured: dict[str, LikeFindings] | None = None
    calibration: str = ""  # on what it was measured; blank where nothing was sampled
    agreement: float | None = None  # the share of sampled reports that assert exactly the report's findings
    remarks: tuple[str, ...] = ()  # what is wrong with the report as a text
    warning: str = ""  # why not to trust the report: what is wrong with the image
    problem: str = ""
