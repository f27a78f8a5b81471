"""What a run is: a hash over all that its adapter depends on, so that a checkpoint of another run is never resumed."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.base import device

ROOM = Path(__file__).parent
LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "pillow",
)


def run_identity(s: settings.Settings, tables: list[Path], images: list[Path], base_commit: str) -> str:
    """16 hexadecimal digits over parameters, split tables, prepared images, base model, code, libraries and device."""
    digest = hashlib.sha256()
    chosen = {
        name: getattr(s, name).model_dump() for name in ("model", "quantization", "lora", "augment", "train")
    }
    versions = [version(name) for name in LIBRARIES]
    digest.update(json.dumps([s.data.image_size, chosen, base_commit, versions, device().type]).encode())
    base = sorted(path for path in Path(s.model.id).glob("*") if path.suffix in (".json", ".safetensors"))
    if missing := [str(path) for path in images if not path.is_file()]:
        raise UserError(
            f"{len(missing)} prepared images are missing, {missing[0]} first: run `dvc repro --force fetch`"
        )
    for path in [*tables, *images, *base, ROOM.parents[1] / "train_qlora.py", *sorted(ROOM.glob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
