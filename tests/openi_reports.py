"""Open-i's 3,955 real reports, for tests and benchmarks: the wheel torchxrayvision 1.5.7 holds them as XML.

Their licence (CC BY-NC-ND 4.0) allows no changed copies, and so no file of this repository holds them.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import dataclass
from pathlib import Path

WHEEL = "torchxrayvision==1.5.7"
INSIDE = "torchxrayvision/data/NLMCXR_reports.tgz"
CACHE = Path(tempfile.gettempdir()) / "explainmyxray-openi" / "NLMCXR_reports.tgz"


@dataclass(frozen=True)
class OpeniReport:
    """A report as the collection has it; `mesh` are the headings that it is indexed by."""

    uid: str
    findings: str
    impression: str
    mesh: tuple[str, ...]


def download(path: Path = CACHE) -> Path:
    """The archive of the reports, fetched with the wheel where it is not there yet (29 MB).

    Raises OSError where no registry answers.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--quiet", "--dest", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            raise OSError("the registry does not answer") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise OSError((done.stderr.strip() or "pip downloaded nothing").splitlines()[-1])
        with zipfile.ZipFile(wheels[0]) as wheel:
            aside = Path(folder) / path.name
            aside.write_bytes(wheel.read(INSIDE))
        os.replace(aside, path)
    return path


def load(path: Path) -> list[OpeniReport]:
    """All reports of the archive, by uid."""
    reports = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                root = ElementTree.parse(io.BytesIO(archive.extractfile(member).read())).getroot()
                sections = {each.get("Label"): each.text or "" for each in root.iter("AbstractText")}
                reports.append(
                    OpeniReport(
                        uid=root.find("pmcId").get("id"),
                        findings=sections.get("FINDINGS", ""),
                        impression=sections.get("IMPRESSION", ""),
                        mesh=tuple(each.text or "" for each in root.iter("major")),
                    )
                )
    return sorted(reports, key=lambda report: int(report.uid))
