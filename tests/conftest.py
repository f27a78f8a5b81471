"""Tests import the package as the stages do, and run from the root of the repository."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"   # real X-rays, where there are any

sys.path.append(str(ROOT / "stages"))    # last: `import evaluate` means the library, not stages/evaluate.py
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def root() -> Path:
    return ROOT
