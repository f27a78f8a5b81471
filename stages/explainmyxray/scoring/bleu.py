"""Corpus BLEU of sacreBLEU as an `evaluate` metric that needs no hub: `evaluate.load(bleu.__file__)`.

`evaluate.load("sacrebleu")` fetches code from a hub at run time; this file is pinned with the repository.
BLEU is Papineni et al. 2002; the settings and their signature are sacreBLEU's defaults (Post 2018).
"""

import datasets
import evaluate
import numpy as np
from sacrebleu.metrics import BLEU

DESCRIPTION = "Corpus BLEU of sacreBLEU, 0 to 100, one reference for each prediction."


class Bleu(evaluate.Metric):
    """`compute(predictions=[str], references=[str])` gives `score` (0 to 100) and sacreBLEU's `signature`."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Post, 'A Call for Clarity in Reporting BLEU Scores', WMT 2018",
            inputs_description="predictions and references: lists of strings of the same length",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references):
        bleu = BLEU()
        score = bleu.corpus_score(list(predictions), [list(references)]).score
        return {"score": score, "signature": str(bleu.get_signature())}


def statistics(predictions, references) -> np.ndarray:
    """What each pair adds to BLEU: int64 (n, 10).

    Lengths of prediction and reference, then matches and totals of 1-grams to 4-grams. Corpus BLEU is a
    function of their sum, so that a resample of the pairs needs no second look at the texts.
    """
    # `sentence_score` warns without `effective_order`; it changes the score, not the counts taken here.
    bleu = BLEU(effective_order=True)
    rows = []
    for prediction, reference in zip(predictions, references):
        pair = bleu.sentence_score(prediction, [reference])
        rows.append([pair.sys_len, pair.ref_len, *pair.counts, *pair.totals])
    return np.array(rows, dtype=np.int64).reshape(-1, 10)


def from_statistics(summed: np.ndarray) -> float:
    """BLEU, 0 to 100, from the sum (10,) of `statistics`."""
    sys_len, ref_len, *n_grams = (int(value) for value in summed)
    matches, totals = n_grams[:4], n_grams[4:]
    smoothing = BLEU().smooth_method
    return BLEU.compute_bleu(matches, totals, sys_len, ref_len, smooth_method=smoothing).score
