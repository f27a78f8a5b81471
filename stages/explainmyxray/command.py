"""The command line of a stage that takes no arguments: `--help`, and a refusal of everything else."""

import argparse


def parse_no_arguments(description: str) -> None:
    """Print `description` and end where `--help` asks for it; end with status 2 at any other argument."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
