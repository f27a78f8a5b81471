"""What a training step asks of 16 GB for each base of `tests/base_configs.yaml`, by estimate, guide values.

    python tests/benchmarks/base_memory.py                        # the table of docs/bases.md
    python tests/benchmarks/base_memory.py --language-model-only  # LoRA on the language model's layers alone

No weights are loaded: a model on the meta device has shapes and no content. Computes as a T4 does, in fp16.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import torch
from ruamel.yaml import YAML

from explainmyxray.model.base import load_family
from explainmyxray.model.free_memory import ALLOCATOR_OVERHEAD, GIB
from explainmyxray.settings import Settings, load_settings
from explainmyxray.training import memory, memory_plan

ROOT = Path(__file__).resolve().parents[2]
T4 = 14.5 * GIB  # of its 16 GB, what is free to torch once CUDA is up
TEXT_TOKENS = 128  # of prompt and report: what the guide's max_length 384 leaves beside 256 image tokens
LANGUAGE_MODEL = r".*language_model.*\.(q|k|v|o)_proj"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--language-model-only", action="store_true")
    parser.add_argument("--only", default="", help="bases whose name holds this")
    options = parser.parse_args()
    # As on a GPU, which is not here.
    memory_plan.OPERATIONS_TO_DECODE["cpu"] = memory_plan.OPERATIONS_TO_DECODE["cuda"]
    print(
        "| base | pixels | image tokens | weights | all recomputed | none recomputed | recomputed by `auto` |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, entry in read_bases().items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            settings = make_settings(Path(folder), entry)
            if options.language_model_only:
                lora = settings.lora.model_copy(update={"target_modules": LANGUAGE_MODEL})
                settings = settings.model_copy(update={"lora": lora})
            print(table_row(name, settings), flush=True)


def read_bases() -> dict[str, dict]:
    """By name, each base's `config` and the `image_size` that it is tuned at."""
    return YAML(typ="safe").load(ROOT / "tests/base_configs.yaml")["bases"]


def make_settings(folder: Path, entry: dict) -> Settings:
    """params.yaml as committed, with the base of an entry, whose configuration is written to `folder`."""
    (folder / "config.json").write_text(json.dumps(entry["config"]))
    settings = load_settings(ROOT / "params.yaml")
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"id": str(folder)}),
            "data": settings.data.model_copy(update={"image_size": entry["image_size"]}),
        }
    )


def estimate(settings: Settings) -> memory.StepMemory:
    """A step whose image has `TEXT_TOKENS` of prompt and report beside it."""
    family = load_family(settings.model)
    prompt_length = family.num_image_tokens(settings.data.image_size) + family.prompt_tokens
    return memory.estimate_step(
        settings, prompt_length, TEXT_TOKENS - family.prompt_tokens, dtype=torch.float16
    )


def table_row(name: str, settings: Settings) -> str:
    step = estimate(settings)
    num_layers = len(step.layers)
    plan = memory_plan.choose_plan(step, "auto", T4)
    auto = f"{plan.num_recomputed} of {num_layers}" if plan.fits else "does not fit"
    cells = (
        name,
        settings.data.image_size,
        load_family(settings.model).num_image_tokens(settings.data.image_size),
        f"{step.weights / GIB:.1f}",
        f"{ALLOCATOR_OVERHEAD * step.peak(1) / GIB:.1f}",
        f"{ALLOCATOR_OVERHEAD * step.peak(num_layers) / GIB:.1f}",
        auto,
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
