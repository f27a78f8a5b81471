"""The base model, its adapter, 4-bit weights, and what goes into the model; this room knows no finding."""

import logging

# bitsandbytes warns when it is imported of a CPU kernel that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
