"""A page on this machine: drop a chest X-ray on it, read its report, and see where the model looked.

    python stages/app.py    # or: make app; then open the address that it prints

Reads PNG, JPEG and DICOM, in memory. Listens on this machine alone unless --host says otherwise. For research only: this
is no medical device.
"""

import argparse
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from explainmyxray.app.answer import answer
from explainmyxray.app.page import launch, page
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.explaining.loading import ADAPTER, load

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", default=ADAPTER, help=f"a folder or a hub id (default: {ADAPTER})")
    parser.add_argument(
        "--samples",
        type=int,
        default=32,
        help="sampled reports behind each probability (default: 32; 0: none)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    options = parser.parse_args()
    explainer = load(options.adapter, max(options.samples, 0))
    blocks = page(lambda upload: answer(explainer, upload))
    try:
        address = launch(blocks, options.host, options.port)
    except OSError as error:
        raise UserError(
            f"the page cannot listen on {options.host}, port {options.port or 'from 7860'}: {error}"
        ) from None
    if options.host not in LOOPBACK:
        print(
            "WARNING: anyone who reaches this machine can use the page: it asks for no password and does not encrypt"
        )
    print(f"open {address}    (Ctrl+C ends it)", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    exit_on_user_error(main)
