"""What a run is: a hash over all that its adapter depends on, so that a checkpoint of another run is never resumed."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from explainmyxray import settings

ROOM = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def run_identity(s: settings.Settings, splits: Path, base_commit: str) -> str:
    """16 hexadecimal digits over parameters, splits (with their pixels' hashes), base model, code and libraries."""
    digest = hashlib.sha256()
    chosen = {name: getattr(s, name).model_dump() for name in ("model", "quantization", "lora", "augment", "train")}
    digest.update(json.dumps([s.seed, s.data.image_size, chosen, base_commit, [version(name) for name in LIBRARIES]]).encode())
    base = sorted(path for path in Path(s.model.id).glob("*") if path.suffix in (".json", ".safetensors"))
    for path in [*sorted(splits.glob("*.csv")), *base, ROOM.parents[1] / "train_qlora.py", *sorted(ROOM.glob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
