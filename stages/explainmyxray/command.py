"""The command line of a stage that takes no arguments: `--help`, and a refusal of everything else."""

import argparse


def parse_no_arguments(description: str) -> None:
    """End with `description` where `--help` asks for it, and with status 2 where there is any other argument."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
