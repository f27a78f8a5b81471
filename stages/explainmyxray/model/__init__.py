"""Base, adapter, batches, loss, training, generation; this room knows no finding."""

import logging

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(
    logging.ERROR
)  # it warns at import of a kernel that is not used
