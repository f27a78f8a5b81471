"""The arguments of both `stages/explain.py` and `stages/app.py`; nothing heavy is imported here."""

import argparse

from explainmyxray.explaining.explanation import ADAPTER


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--adapter`, and `--samples`, which is None where it is not given."""
    parser.add_argument("--adapter", default=ADAPTER, help=f"a folder or a hub id (default: {ADAPTER})")
    parser.add_argument(
        "--samples",
        type=count,
        help="sampled reports behind each share (default: evaluate.samples of params.yaml, with which the "
        "shares were calibrated; 0: none, which is faster)",
    )


def count(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 on")
    return int(text)
