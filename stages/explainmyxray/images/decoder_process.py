"""The process in which `films` decodes: it reads a file from its standard input and writes the film to its standard output.

Before each file the limit of processor time is set anew; the limit of memory holds for the process as a whole.
"""

import os
import resource
import signal
import struct
import sys
from typing import BinaryIO

from explainmyxray.images.decoding import BadImage, decode, has_colour

CPU_SECONDS = 10  # a film of 14 million pixels, as mammography has them, takes a tenth of this
MEMORY_BYTES = 4 * 2**30  # of address space; 50 million pixels of a DICOM file in 64 bits, several times over

READY = b"ready"
DECODE, COLOUR = b"D", b"C"  # the questions
REQUEST_HEADER = struct.Struct("<cQ")  # question, length of the file, which follows
ANSWER_HEADER = struct.Struct(
    "<?Q"
)  # whether there is an answer, its length; it follows, or the reason of BadImage
IMAGE_HEADER = struct.Struct("<II")  # width and height; the pixels follow, a byte each, row by row


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the asking process, and that ends this one
    # Decoders may print: only answers reach the pipe.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Imported before memory is limited, and before the first file's time is counted.
    from explainmyxray.images import dicom

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower_limit(resource.RLIMIT_AS, MEMORY_BYTES)
    answers.write(READY)
    answers.flush()
    requests = sys.stdin.buffer
    while True:
        header = requests.read(REQUEST_HEADER.size)
        if len(header) < REQUEST_HEADER.size:  # the asking process has ended
            return
        question, length = REQUEST_HEADER.unpack(header)
        data = requests.read(length)
        used = resource.getrusage(resource.RUSAGE_SELF)
        _lower_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)
        try:
            if question == COLOUR:
                answer = bytes([not dicom.is_dicom(data) and has_colour(data)])
            else:
                film = dicom.decode_dicom(data) if dicom.is_dicom(data) else decode(data)
                answer = IMAGE_HEADER.pack(*film.size) + film.tobytes()
        except BadImage as bad:
            _send(answers, False, bad.reason.encode())
        except MemoryError:
            _send(answers, False, b"too_much_memory")
        else:
            _send(answers, True, answer)
        data = film = answer = None  # nothing of a film is kept until the next one


def _lower_limit(kind: int, value: int) -> None:
    """Set a soft limit, within the hard one that the system gives."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, hard))


def _send(answers: BinaryIO, ok: bool, answer: bytes) -> None:
    answers.write(ANSWER_HEADER.pack(ok, len(answer)))
    answers.write(answer)
    answers.flush()


if __name__ == "__main__":
    main()
