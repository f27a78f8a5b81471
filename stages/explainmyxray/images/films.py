"""The one way in for films that are not trusted: members of archives, uploads, files on disk; PNG, JPEG or
DICOM.

They are decoded in another process, with limits of time and memory. The compiled decoders below Pillow and
pydicom can end the process that they run in (python-gdcm throws C++ exceptions that nothing catches, on one
in 250 files that tests/fuzz_films.py makes) or spoil its memory, and a few kilobytes can keep one busy for
minutes. So a file costs `CPU_SECONDS` and `MEMORY_BYTES` at most, and takes nothing with it.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image

from explainmyxray.images import decoder_process
from explainmyxray.images.decoder_process import (
    ANSWER_HEADER,
    COLOUR,
    DECODE,
    IMAGE_HEADER,
    READY,
    REQUEST_HEADER,
)
from explainmyxray.images.decoding import MAX_FILE_BYTES, BadImage

STAGES = Path(__file__).resolve().parents[2]
TOO_SLOW = -signal.SIGXCPU  # exit status of a process that has used up its processor time
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # in the names of variables that a decoder has no need of


def open_film(data: bytes) -> Image.Image:
    """A file's film as an upright 8-bit greyscale image. Raises BadImage where there is none that can be
    used.
    """
    if len(data) > MAX_FILE_BYTES:
        raise BadImage("too_large")
    answer = _ask(DECODE, data)
    width, height = IMAGE_HEADER.unpack_from(answer)
    return Image.frombytes("L", (width, height), answer[IMAGE_HEADER.size :])


def is_colour(data: bytes) -> bool:
    """Whether a file that `open_film` takes is a colour picture, not a grey one in three channels. False for
    DICOM.
    """
    return _ask(COLOUR, data) == b"\x01"


class Decoder:
    """A process that decodes one file after another. It ends when this one does, however that ends."""

    def __init__(self):
        environment = {
            name: value
            for name, value in os.environ.items()
            if not any(secret in name.upper() for secret in SECRETS)
        }
        # Any place where this process finds its packages.
        paths = [str(STAGES), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", decoder_process.__name__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders print what they find in a header
        )
        if self.process.stdout.read(len(READY)) != READY:
            status = self.close()
            raise RuntimeError(
                f"the decoding process did not start (status {status}); "
                f"try PYTHONPATH={STAGES} {sys.executable} -m {decoder_process.__name__}"
            )

    def ask(self, question: bytes, data: bytes) -> bytes:
        """The answer to a question about a file. Raises BadImage, or EOFError where the process has been
        killed.
        """
        try:
            self.process.stdin.write(REQUEST_HEADER.pack(question, len(data)))
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EOFError from None
        ok, length = ANSWER_HEADER.unpack(self._read(ANSWER_HEADER.size))
        answer = self._read(length)
        if not ok:
            raise BadImage(answer.decode())
        return answer

    def _read(self, length: int) -> bytes:
        data = self.process.stdout.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def close(self) -> int:
        """End the process, if it has not ended yet; its exit status."""
        with contextlib.suppress(BrokenPipeError):  # what it did not take is still in the buffer
            self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


# Decoders that wait for the next file. A thread takes one out while it asks, so that none is shared.
_idle: list[Decoder] = []
os.register_at_fork(after_in_child=_idle.clear)


def _ask(question: bytes, data: bytes) -> bytes:
    """The answer of an idle decoder, or of a new one. Raises BadImage."""
    try:
        decoder = _idle.pop()
    except IndexError:
        decoder = Decoder()
    try:
        return _ask_decoder(decoder, question, data)
    except EOFError:
        if decoder.close() == TOO_SLOW:
            raise BadImage("too_slow") from None
    # It may have been killed for another reason than this file: a new one will tell.
    decoder = Decoder()
    try:
        return _ask_decoder(decoder, question, data)
    except EOFError:
        reason = "too_slow" if decoder.close() == TOO_SLOW else "damaged"
        raise BadImage(reason) from None


def _ask_decoder(decoder: Decoder, question: bytes, data: bytes) -> bytes:
    """The answer of `decoder`, which is idle again afterwards. Raises BadImage, or EOFError where it died."""
    try:
        answer = decoder.ask(question, data)
    except BadImage:
        _idle.append(decoder)
        raise
    _idle.append(decoder)
    return answer
