"""What a run is: a hash over what decides its adapter, so that a checkpoint of another run is never resumed.

The same run has the same fingerprint in another folder and on another machine, under any Python and any build
of torch.
"""

import ast
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from explainmyxray.errors import UserError
from explainmyxray.model.base import device
from explainmyxray.settings import Settings

STAGES = Path(__file__).parents[2]
CODE = ("explainmyxray/tuning.py", "explainmyxray/model/**/*.py", "explainmyxray/training/*.py")
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
# Parameters of `train` that leave its adapter as it is: they make a run faster or smaller, or watch it.
WITHOUT_EFFECT = {
    "dataloader_num_workers",
    "findings_f1_images",
    "gradient_checkpointing",
    "save_total_limit",
}


def run_fingerprint(settings: Settings, tables: list[Path], images: list[Path], revision: str | None) -> str:
    """16 hexadecimal digits over what decides the adapter.

    That is: the parameters that training reads, the split tables, the prepared images, the base model (the
    files of a folder; on the hub the id and its commit `revision`), the code of the rooms `model` and
    `training` without comments and docstrings, the libraries' versions, and whether a GPU or a CPU computes.

    Raises UserError where a prepared image is missing.
    """
    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} prepared images are missing, {missing[0]} first: run `dvc repro --force fetch`"
        )
    digest = hashlib.sha256(json.dumps(_description(settings, revision)).encode())
    base = Path(settings.model.id).glob("*")
    base_files = sorted(path for path in base if path.suffix in (".json", ".safetensors"))
    for path in [*tables, *images, *base_files]:
        digest.update(path.name.encode() + path.read_bytes())
    for pattern in CODE:
        for path in sorted(STAGES.glob(pattern)):
            digest.update(path.name.encode() + syntax(path.read_text()).encode())
    return digest.hexdigest()[:16]


def _description(settings: Settings, revision: str | None) -> dict:
    """What is no file: parameters, base, versions and kind of device."""
    is_folder = Path(settings.model.id).is_dir()
    return {
        "image_size": settings.data.image_size,
        "model": settings.model.model_dump(exclude={"id", "revision"}),
        "base": None if is_folder else [settings.model.id, revision],
        "quantization": settings.quantization.model_dump(),
        "lora": settings.lora.model_dump(),
        "augment": settings.augment.model_dump(),
        "train": settings.train.model_dump(exclude=WITHOUT_EFFECT),
        # Builds for other drivers differ in what follows the plus sign: 2.14.1+cu126.
        "libraries": [version(name).partition("+")[0] for name in LIBRARIES],
        "device": device().type,
    }


def syntax(source: str) -> str:
    """Python source as its syntax tree in JSON: without comments, docstrings and layout.

    Not `ast.unparse` or `ast.dump`, whose text changes from one Python to the next.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        has_docstring = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        )
        if has_docstring:
            node.body[0] = ast.Pass()
    return json.dumps(_tree(tree))


def _tree(node) -> list | str:
    """A node's name and fields, but for empty ones: a newer Python has more of those."""
    if isinstance(node, list):
        return [_tree(child) for child in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [[name, _tree(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, fields]
