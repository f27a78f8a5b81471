"""What the five stages share, a room per subject."""

import logging
import sys

# Where the package `kernels` is installed, bitsandbytes fetches compiled code from a hub when it is imported,
# and runs it; transformers can as well. For them there is no such package: no code comes from a hub.
sys.modules["kernels"] = None  # type: ignore[assignment]

# bitsandbytes warns when it is imported that it goes without that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
