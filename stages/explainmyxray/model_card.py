"""The model card beside an adapter: the template model_card.md with the facts of one run."""

from pathlib import Path
from string import Template

from explainmyxray.settings import Settings
from explainmyxray.tables import rounded

TEMPLATE = Path(__file__).with_name("model_card.md")


def write_model_card(folder: Path, settings: Settings, facts: dict) -> None:
    """Write README.md into an adapter's `folder`.

    `facts` fills what `settings` cannot know: the base's `revision`, `family` and `model_class`, the
    `prompt`, the `inputs` that plain transformers makes of a film, the figures of metrics/train.json, and
    what was trained on (`train_images`, `train_patients`, `val_images`, `source`, and `reports`, a sentence).
    """
    filled = rounded(facts) | _settings_facts(settings)
    (folder / "README.md").write_text(Template(TEMPLATE.read_text()).substitute(filled))


def _settings_facts(settings: Settings) -> dict:
    lora, quantization = settings.lora, settings.quantization
    targets = lora.target_modules
    if not isinstance(targets, str):
        targets = ", ".join(targets)
    four_bit = f"4 bits, {quantization.bnb_4bit_quant_type}"
    return {
        "base": settings.model.id,
        "seed": settings.train.seed,
        "image_size": settings.data.image_size,
        "r": lora.r,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        "target_modules": targets,
        "quantization": four_bit if quantization.load_in_4bit else "none",
    }
