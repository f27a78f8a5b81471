"""What this repository costs against the plain way: scripts for
a person; `recipes` and `gpu_sections` are what they share.
"""

import logging

# bitsandbytes warns at import of a kernel that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
