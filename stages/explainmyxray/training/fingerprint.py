"""What a run is: a hash over what decides its adapter, so that a checkpoint of another run is never resumed."""

import ast
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.base import device

STAGES = Path(__file__).parents[2]
CODE = ("train_qlora.py", "explainmyxray/model/*.py", "explainmyxray/training/*.py")
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


def run_fingerprint(s: settings.Settings, tables: list[Path], images: list[Path], base_commit: str) -> str:
    """16 hexadecimal digits over what decides the adapter.

    That is: the parameters that training reads, the split tables, the prepared images, the base model, the code of the
    rooms `model` and `training` without its comments and docstrings, the libraries' versions, and the kind of device.

    Raises UserError where a prepared image is missing.
    """
    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} prepared images are missing, {missing[0]} first: run `dvc repro --force fetch`"
        )
    digest = hashlib.sha256()
    sections = ("model", "quantization", "lora", "augment", "train")
    chosen = {name: getattr(s, name).model_dump() for name in sections}
    versions = [version(name) for name in LIBRARIES]
    digest.update(json.dumps([s.data.image_size, chosen, base_commit, versions, device().type]).encode())
    base = sorted(path for path in Path(s.model.id).glob("*") if path.suffix in (".json", ".safetensors"))
    for path in [*tables, *images, *base]:
        digest.update(path.name.encode() + path.read_bytes())
    for pattern in CODE:
        for path in sorted(STAGES.glob(pattern)):
            digest.update(path.name.encode() + statements(path.read_text()).encode())
    return digest.hexdigest()[:16]


def statements(source: str) -> str:
    """Python source without its comments, docstrings and layout: what is left decides what it does."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)
