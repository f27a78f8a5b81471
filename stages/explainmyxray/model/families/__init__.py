"""Families of bases: what differs between one kind of base and another is said in this room alone.

A family is chosen by a base's configuration, never by its name. To add one: a module with a `Family` and a
`ReportProcessor`, and its name in `FAMILIES`.
"""

from transformers import PreTrainedConfig

from explainmyxray.errors import UserError
from explainmyxray.model.families.chat import Chat
from explainmyxray.model.families.family import Family
from explainmyxray.model.families.paligemma import PaliGemma

FAMILIES: tuple[type[Family], ...] = (PaliGemma, Chat)  # the first that fits is taken


def choose_family(config: PreTrainedConfig, model_id: str = "this base") -> Family:
    """The family of a base with this configuration. Raises UserError where none fits."""
    for family in FAMILIES:
        if family.fits(config):
            return family(config)
    raise UserError(
        f"model.id: {model_id} is a {config.model_type} model: take PaliGemma, or a chat model that sees "
        "images (MedGemma, Gemma 3, Qwen3-VL)"
    )


def family_of(model) -> Family:
    """The family of a loaded model, with its adapter or without."""
    return choose_family(model.config)
