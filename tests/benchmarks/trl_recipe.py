"""TRL's `SFTTrainer` as a recipe, where TRL is installed: no requirement of this repository.

    python -m venv --system-site-packages PEER && PEER/bin/pip install --no-deps trl==1.16.0

TRL's own collator asks PaliGemma's processor for text without images, which ends in "`images` are expected as
arguments". Here TRL prepares no sample: the plain recipe's collator makes the batches. TRL brings the adapter
of a 4-bit base to bfloat16; it is brought back to float32, as in the other recipes.
"""

from pathlib import Path

import pandas as pd
from datasets import Dataset
from transformers import TrainingArguments

from benchmarks.recipes import PlainCollator, PlainFilms, Recipe

# What both configurations take under other names or with other defaults.
OF_TRL = {"dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False}


def trl_recipe(folder: Path, rows: pd.DataFrame, processor, images: str = "films") -> Recipe | None:
    """TRL's trainer on `folder`/`images`, its loss in chunks; None where TRL is not installed."""
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        return None

    class PeerTrainer(SFTTrainer):
        def __init__(self, model, arguments: TrainingArguments, **kwargs):
            values = {name: getattr(arguments, name) for name in arguments.__dataclass_fields__}
            fields = SFTConfig.__dataclass_fields__
            shared = {name: value for name, value in values.items() if name in fields and fields[name].init}
            config = SFTConfig(**(shared | OF_TRL))
            super().__init__(model, config, processing_class=processor.processor, **kwargs)
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.data = weight.data.float()

    films = PlainFilms(folder / images, rows)
    collate = PlainCollator(processor)
    # A data set of the library that TRL wants, of row numbers: a film is opened when its batch is made.
    numbers = Dataset.from_dict({"row": range(len(films))})
    return Recipe(PeerTrainer, lambda samples: collate([films[sample["row"]] for sample in samples]), numbers)
