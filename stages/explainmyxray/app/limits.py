"""What the page's server bears: how much, how many and how long."""

from dataclasses import dataclass

from explainmyxray.images.decoding import MAX_FILE_BYTES

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of uploads and connections; sizes in bytes, times in seconds."""

    upload_bytes: int = MAX_FILE_BYTES  # of one file
    waiting_uploads: int = 64  # being received, waiting or being explained
    waiting_bytes: int = 256 * MIB  # of all of them together
    connections: int = 256
    upload_seconds: float = 10  # for a body, beside what its size takes at `upload_rate`
    upload_rate: float = MIB  # bytes a second; who sends more slowly is cut off
    head_seconds: float = 10  # from a connection to the end of its request's headers
    response_seconds: float = 60  # from the end of a response to its last byte read by the client
    linger_seconds: float = 10  # for the rest of a refused body, which is thrown away
