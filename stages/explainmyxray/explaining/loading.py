"""Loading a trained adapter with all that explaining needs beside it."""

from transformers.utils import logging

from explainmyxray.explaining.confidence import load_calibration
from explainmyxray.explaining.explainer import Explainer
from explainmyxray.explaining.explanation import ADAPTER
from explainmyxray.generation import hold_decoded_for
from explainmyxray.gpu import require_usable_gpu
from explainmyxray.model.adapter import adapter_folder, load_adapter, tuned_base, weights_digest
from explainmyxray.model.base import check_base, load_base, load_processor
from explainmyxray.model.tuned_on import load_tuned_on
from explainmyxray.out_of_distribution import load_distribution
from explainmyxray.settings import load_settings


def load_explainer(adapter: str, samples: int | None) -> Explainer:
    """The adapter on the base that it was tuned on; `samples` None: as many as evaluation draws.

    Raises UserError where either cannot be had.
    """
    require_usable_gpu()
    logging.set_verbosity_error()
    settings = load_settings()
    folder = adapter if adapter == ADAPTER else adapter_folder(adapter)
    base = check_base(tuned_base(folder, settings.model))
    processor = load_processor(base, settings.data.image_size)
    model = load_adapter(load_base(base, settings.quantization), folder, processor.prompt)
    hold_decoded_for(model, processor, settings.evaluate)
    return Explainer(
        model,
        processor,
        load_distribution(folder),
        load_tuned_on(folder),
        settings.evaluate,
        settings.seed,
        settings.evaluate.samples if samples is None else samples,
        load_calibration(weights_digest(folder)),
    )
