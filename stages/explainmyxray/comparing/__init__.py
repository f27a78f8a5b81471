"""Two revisions side by side: figures that moved by more than chance, parameters that differ, the gate."""

import sys

# `evaluate` brings transformers and torch for pipelines of its own, wherever it finds them. A comparison runs
# no model: without them it starts in half the time.
if "transformers" not in sys.modules:
    sys.modules["transformers"] = None  # for Python: there is no such module
    import evaluate  # noqa: F401

    del sys.modules["transformers"]
