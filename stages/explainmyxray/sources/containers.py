"""What a data set lies in: a zip file or a folder. Its files are listed and read one by one; nothing is
unpacked or copied.

No container is trusted: what must not be opened says so in its listing, and a size is bounded before memory
is spent.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from explainmyxray.images.films import open_film
from explainmyxray.sources import Film

# A step up, an absolute path, a Windows path, control characters, and bytes that are no text.
UNSAFE_NAME = re.compile(r"(^|/)\.\.(/|$)|^/|[\\:\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Member:
    """A file inside a container as the listing has it, not yet opened."""

    name: str  # path inside the container, "/" between folders
    index: int  # place in the listing: two members of a zip file can have one name
    size: int  # bytes, unpacked
    refusal: str | None = None  # why it must not be opened, one of `images.decoding.REASONS`

    @property
    def depth(self) -> int:
        return self.name.count("/")


@dataclass(frozen=True)
class Container(ABC):
    """A zip file or a folder at `path`. It can be pickled: another process opens it for itself."""

    path: Path

    @abstractmethod
    def members(self) -> list[Member]:
        """All members, the index of each its place. Raises UserError where the container cannot be used as a
        whole.
        """

    @abstractmethod
    def read(self, member: Member) -> bytes:
        """A member's bytes. Raises BadImage where they cannot or must not be read."""

    @abstractmethod
    def checksum(self, member: Member) -> int:
        """CRC-32 of a member's bytes: from the directory of a zip file, by reading it in a folder. Raises
        BadImage.
        """

    @abstractmethod
    def stored_bytes(self) -> int:
        """Bytes on disk: of the zip file, or of all files in the folder."""


@dataclass(frozen=True)
class ContainerFilm(Film):
    """A film inside a container."""

    container: Container
    member: Member

    def read(self) -> Image.Image:
        return open_film(self.container.read(self.member))
