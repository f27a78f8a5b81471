"""Kaggle's chest-xray-pneumonia: folder and file name give label, subtype and patient."""

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from explainmyxray.sources.archive_files import list_images, read_yaml
from explainmyxray.sources.containers import Container, ContainerFilm
from explainmyxray.sources.kaggle_download import get_data_set

if TYPE_CHECKING:
    from explainmyxray import settings


def films(data: "settings.Data", seed: int) -> tuple[list[ContainerFilm], dict]:
    """The films, downloaded where they are missing, and an audit of all other files. Raises UserError."""
    return films_in(get_data_set("chest-xray-pneumonia", Path(data.archives)))


def films_in(container: Container) -> tuple[list[ContainerFilm], dict]:
    """The films of an archive, and an audit of its other files."""
    folders = read_yaml("chest_xray_pneumonia.yaml")
    images, audit = list_images(container)
    found = []
    for member in images:
        name = PurePosixPath(member.name)
        folder = folders.get(name.parent.name)
        match = re.fullmatch(folder["name"], name.stem, re.ASCII) if folder else None
        if not match:
            audit["bad_dropped"]["unknown_name"] += 1
            continue
        part = match.groupdict()
        subtype = part.get("subtype", "")
        patient = part.get("patient") or f"{subtype}-{part['number']}"
        study = {
            "source": "chest_xray_pneumonia",
            "patient": f"chest_xray_pneumonia-{patient}",
            "labels": folder["label"],
            "subtype": subtype,
        }
        found.append(ContainerFilm(f"chest_xray_pneumonia/{name.stem}", study, container, member))
    return found, audit
