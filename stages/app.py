"""A page on this machine: drop a chest X-ray on it, read its report, and see where the model looked.

    python stages/app.py    # or: make app; then open the address that it prints

Reads PNG, JPEG and DICOM, in memory. Listens on this machine alone unless --host says otherwise.
For research only: this is no medical device.
"""

import argparse
import errno
import os
import socket

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is loaded; docs/benchmarks.md

from explainmyxray.app.server import FIRST_PORT, launch, listen
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.explaining.arguments import add_model_arguments


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    options = parser.parse_args()
    host = options.host.strip("[]")  # around an IPv6 address, as URLs have them
    listener = open_listener(host, options.port)
    # torch and transformers take seconds to import: after what can be refused at once.
    from explainmyxray.app.explain_upload import handle_upload
    from explainmyxray.explaining.loading import load_explainer

    explainer = load_explainer(options.adapter, options.samples)
    served = launch(lambda data: handle_upload(explainer, data), host, listener)
    try:
        if not served.loopback:
            print("WARNING: anyone who reaches this machine can use the page: no password, no encryption")
        print(f"open {served.address}    (Ctrl+C ends it)", flush=True)
        served.wait()
    except KeyboardInterrupt:
        served.stop()
        print("\nthe page has ended", flush=True)
        # A film that is being explained can't be stopped, and Python's own end takes seconds with a model in
        # memory; there is nothing on disk to tidy up.
        os._exit(0)


def open_listener(host: str, port: int | None) -> socket.socket:
    """Where the page will listen. Raises UserError where it cannot."""
    try:
        return listen(host, port)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "another program does (--port names another port)" if taken else error
        ports = f"from {FIRST_PORT}" if port is None else port
        raise UserError(f"the page cannot listen on {host}, port {ports}: {reason}") from None


if __name__ == "__main__":
    exit_on_user_error(main)
