"""Finds a data set of Kaggle's on disk, or downloads it with the `kaggle` client.

A download is checked before it is renamed into place. Kaggle serves public data sets without an account, and
asks for a key or for accepted terms where it does not.
"""

import contextlib
import io
import os
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

from explainmyxray.errors import UserError, shortened
from explainmyxray.registry import SOURCES
from explainmyxray.sources.containers import Container
from explainmyxray.sources.folder import Folder
from explainmyxray.sources.zip_archive import ZipArchive

# By the data set's name: its owner.
DATA_SETS = {source.kaggle.name: source.kaggle.owner for source in SOURCES.values() if source.kaggle}
# Seconds to connect, and to wait for the next bytes. The client's first request has no limit of its own.
TIMEOUTS = (10, 60)
KEY = (
    "make a token at https://www.kaggle.com/settings/api and put it into the environment as KAGGLE_API_TOKEN "
    "or into ~/.kaggle/access_token (a legacy kaggle.json in ~/.kaggle or KAGGLE_CONFIG_DIR works too)"
)


def page(name: str) -> str:
    """Where a person sees the data set, accepts its terms and downloads it by hand."""
    return f"https://www.kaggle.com/datasets/{DATA_SETS[name]}/{name}"


def find_data_set(name: str, archives: Path) -> Container | None:
    """The data set in the folder `archives`, or None where it is not there.

    Looked for in this order: a zip file as Kaggle serves it, a folder as a Kaggle notebook mounts it, and the
    same as it mounts it since August 2026. An empty folder counts as none.
    """
    zip_file = archives / f"{name}.zip"
    if zip_file.exists():
        return ZipArchive(zip_file)
    for path in (archives / name, archives / "datasets" / DATA_SETS[name] / name):
        folder = Folder(path)
        if path.is_dir() and not folder.is_empty():
            return folder
    return None


def get_data_set(name: str, archives: Path) -> Container:
    """The data set in the folder `archives`, downloaded as a zip file where it is missing.

    What a broken download has got stays in `archives/incomplete`, and the next one goes on from there. Raises
    UserError.
    """
    return find_data_set(name, archives) or _download_checked(name, archives)


def _download_checked(name: str, archives: Path) -> ZipArchive:
    path = archives / f"{name}.zip"
    by_hand = f"or download {page(name)} in a browser and put it at {path}"
    part = archives / "incomplete" / path.name
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{name} is not in {archives}, and cannot be downloaded to it ({error.strerror}): "
            "set data.archives to a folder that can be written to, or attach the data set"
        ) from None
    try:
        _download(name, part, by_hand)
        _check(part, f"run again, {by_hand}")
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # not empty: part of a download lies there
            part.parent.rmdir()
    return ZipArchive(path)


def _download(name: str, part: Path, by_hand: str) -> None:
    try:
        _client().dataset_download_files(f"{DATA_SETS[name]}/{name}", path=str(part.parent), quiet=False)
    except requests.HTTPError as error:  # its text is not shown: it holds a signed address
        advice = _advice(error.response, page(name))
        raise UserError(
            f"Kaggle answered {error.response.status_code} for {name}: {advice}, {by_hand}"
        ) from None
    except requests.RequestException as error:
        got = ""
        if part.exists():
            got = f"; the {part.stat().st_size:,} bytes so far are kept, run again to go on"
        raise UserError(
            f"no connection to Kaggle for {name} ({type(error).__name__}){got}: "
            f"check the network and run again, {by_hand}"
        ) from None
    except ValueError:  # the size is not the one announced: an error page may be in it
        _discard(part)
        raise UserError(
            f"the download of {name} was not what Kaggle announced and was discarded: run again, {by_hand}"
        ) from None


def _check(part: Path, advice: str) -> None:
    print(f"checking {part.name}")
    try:
        damaged = ZipArchive(part).first_unreadable()
    except UserError:
        problem = "it is no whole zip archive"
    else:
        if damaged is None:
            return
        problem = f"its member {shortened(damaged)} is damaged"
    size = part.stat().st_size
    _discard(part)
    raise UserError(f"the download of {part.name} ({size:,} bytes) was discarded, {problem}: {advice}")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    note = part.with_name(f"{part.name}.kaggle-partial")  # the client's, on what it resumes
    note.unlink(missing_ok=True)


def _advice(response: requests.Response, page: str) -> str:
    match response.status_code:
        case 401:
            return f"your key is missing, wrong or expired; {KEY}"
        case 403:
            return f"log in and accept the terms at {page}; if you have no key, {KEY}"
        case 404:
            return f"the data set is not there any more, see {page}"
        case 429:
            wait = response.headers.get("Retry-After", "")
            pause = f"{wait} seconds" if wait.isdigit() else "some minutes"
            return f"too many requests; wait {pause} and run again"
    return "run again later"


def _client():
    """The client with the credentials that it finds, or anonymous. Raises requests' errors."""
    from kagglesdk.kaggle_env import get_endpoint, get_env

    requests.head(get_endpoint(get_env()), timeout=TIMEOUTS[0])  # a missing network shows here, at once
    for name in ("VERBOSE", "VERBOSE_OUTPUT"):  # they make the client print its requests, with the key
        os.environ.pop(name, None)
    # Importing the client logs in, and prints a page of help where it cannot.
    with contextlib.redirect_stdout(io.StringIO()):
        from kaggle import KaggleApi
        from kagglesdk import KaggleClient

        class Client(KaggleApi):
            def build_kaggle_client(self) -> KaggleClient:  # the original ignores KAGGLE_API_ENVIRONMENT=TEST
                known = self.config_values.get
                client = KaggleClient(
                    username=known("username"), password=known("key"), api_token=known("token")
                )
                with client:
                    for scheme in ("http://", "https://"):
                        client.http_client()._session.mount(scheme, _WithTimeouts())
                return client

        client = Client()
        with contextlib.suppress(SystemExit):  # no credentials: public data sets need none
            client.authenticate()
    return client


class _WithTimeouts(HTTPAdapter):
    def send(self, request, stream=False, timeout=None, **options):
        return super().send(request, stream=stream, timeout=timeout or TIMEOUTS, **options)
