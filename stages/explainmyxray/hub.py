"""What the Hugging Face hub's client raises, as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from explainmyxray.errors import UserError


@contextmanager
def hub_errors(name: str, setting: str = "model.id", revision: str | None = None) -> Iterator[None]:
    """Raise UserError for what the client raises about the repository `name`, which `setting` asked for."""
    page = f"https://huggingface.co/{name}"
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{setting}: {name} asks for its licence to be accepted: do so on {page}, then run "
            "`hf auth login` or set HF_TOKEN to a token of the same account"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"model.revision: {name} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{setting}: there is no model {name}, neither a folder here nor on the hub: check its spelling "
            "(a private one needs HF_TOKEN)"
        ) from None
    except HFValidationError:
        raise UserError(
            f"{setting}: {name} is neither a folder here nor the id of a model on the hub"
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{setting}: {name} is no folder here, is not in the local cache, and the hub cannot be reached: "
            "check the network (and HF_HUB_OFFLINE), or the spelling"
        ) from None
    except EntryNotFoundError as error:
        raise UserError(f"{setting}: {name} lacks a file: {_first_line(error)}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{setting}: the hub did not give {name}: {_first_line(error)}") from None
    except (OSError, ValueError, httpx.HTTPError) as error:
        # transformers wraps the client's errors: the wrapped one says more.
        if isinstance(error.__cause__, (HfHubHTTPError, LocalEntryNotFoundError)):
            with hub_errors(name, setting, revision):
                raise error.__cause__ from None
        raise UserError(f"{setting}: {name} cannot be loaded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
