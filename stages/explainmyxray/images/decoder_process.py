"""The process in which `films` decodes: it reads files from its standard input and writes films to its
standard output.

PNG and JPEG files are decoded here, one after another. For a DICOM file the process forks: its decoders are
the ones that fail badly, and a copy that is used once can neither take the process along nor spoil the next
film. The fork costs some 20 ms, for all that decoding needs is imported already. Both end at their limits of
processor time and memory.
"""

import gc
import mmap
import os
import resource
import signal
import struct
import sys
from typing import BinaryIO

from explainmyxray.images import dicom
from explainmyxray.images.decoding import BadImage, decode, has_colour

CPU_SECONDS = 6  # a film of 14 million pixels, as mammography has them, takes one of them
MEMORY_BYTES = 4 * 2**30  # of address space; 50 million pixels of a DICOM file in 64 bits, several times over

# Why there is no film, by the exit status of what decoded it; a negative status is a signal. SIGKILL comes
# from the system where memory runs out.
DEATHS = {-signal.SIGXCPU: "too_slow", -signal.SIGKILL: "too_much_memory"}

READY = b"ready"
DECODE, COLOUR = b"D", b"C"  # the questions
REQUEST_HEADER = struct.Struct("<cQ")  # question, length of the file, which follows
# Whether there is an answer, and its length; it follows, or else the reason of BadImage
ANSWER_HEADER = struct.Struct("<?Q")
IMAGE_HEADER = struct.Struct("<II")  # width and height; the pixels follow, a byte each, row by row


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the asking process, and that ends this one
    # Decoders may print: only answers reach the pipe.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    begun = mmap.mmap(-1, 1)  # shared with the copies: not 0 once one has begun to write its answer
    gc.freeze()  # what is there is not looked at again: looking would copy it for each fork
    answers.write(READY)
    answers.flush()
    requests = sys.stdin.buffer
    while True:
        header = requests.read(REQUEST_HEADER.size)
        if len(header) < REQUEST_HEADER.size:  # the asking process has ended
            return
        question, length = REQUEST_HEADER.unpack(header)
        data = requests.read(length)
        if not dicom.is_dicom(data):
            used = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)
            _answer(question, data, answers)
            del data  # nothing of a film is kept until the next one
            continue
        begun[0] = 0
        child = os.fork()
        if child == 0:
            _answer_and_exit(question, data, answers, begun)
        del data
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status and begun[0]:  # half an answer lies in the pipe: nothing after it would be understood
            sys.exit(1)
        if status:
            _send(answers, False, DEATHS.get(status, "damaged").encode())


def _answer_and_exit(question: bytes, data: bytes, answers: BinaryIO, begun: mmap.mmap) -> None:
    """What a copy does: it must not go on in the loop of `main`, whatever happens."""
    try:
        _limit(resource.RLIMIT_CPU, CPU_SECONDS)
        _answer(question, data, answers, begun)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _answer(question: bytes, data: bytes, answers: BinaryIO, begun: mmap.mmap | None = None) -> None:
    """Decode, then write the answer, and say so in `begun`."""
    ok = True
    try:
        if question == COLOUR:
            answer = bytes([not dicom.is_dicom(data) and has_colour(data)])
        else:
            film = dicom.decode_dicom(data) if dicom.is_dicom(data) else decode(data)
            answer = IMAGE_HEADER.pack(*film.size) + film.tobytes()
    except BadImage as bad:
        ok, answer = False, bad.reason.encode()
    except MemoryError:
        ok, answer = False, b"too_much_memory"
    if begun is not None:
        begun[0] = 1
    _send(answers, ok, answer)


def _limit(kind: int, value: int) -> None:
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
