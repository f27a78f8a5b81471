"""A page on this machine: drop a chest X-ray on it, read its report, and see where the model looked.

    python stages/app.py    # or: make app; then open the address that it prints

Reads PNG, JPEG and DICOM, in memory. Listens on this machine alone unless --host says otherwise.
For research only: this is no medical device.
"""

import argparse
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is loaded; docs/benchmarks.md

from explainmyxray.app.result import handle_upload
from explainmyxray.app.server import launch
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.explaining.arguments import add_model_arguments
from explainmyxray.explaining.loading import load_explainer


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
    explainer = load_explainer(options.adapter, options.samples)
    try:
        served = launch(lambda data: handle_upload(explainer, data), options.host, options.port)
    except (OSError, OverflowError) as error:  # OverflowError: a port over 65535
        port = "from 7860" if options.port is None else options.port
        raise UserError(f"the page cannot listen on {options.host}, port {port}: {error}") from None
    try:
        if not served.loopback:
            print("WARNING: anyone who reaches this machine can use the page: no password, no encryption")
        print(f"open {served.address}    (Ctrl+C ends it)", flush=True)
        served.wait()
    except KeyboardInterrupt:
        ended = served.stop()
        print(flush=True)
        if not ended:
            # A film is being explained, and its thread can't be stopped; there is nothing on disk to tidy up.
            os._exit(0)


if __name__ == "__main__":
    exit_on_user_error(main)
