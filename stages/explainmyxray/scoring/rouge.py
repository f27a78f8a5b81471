"""ROUGE of `rouge_score` as an `evaluate` metric that needs no hub: `evaluate.load(rouge.__file__)`.

ROUGE is Lin 2004; `rouge_score` is Google's implementation. F-measures, no stemming; ROUGE-L over the whole
report.
"""

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

KINDS = ("rouge1", "rouge2", "rougeL")
DESCRIPTION = (
    "ROUGE-1, ROUGE-2 and ROUGE-L of rouge_score: F-measures, 0 to 1, one reference for each prediction."
)


class Rouge(evaluate.Metric):
    """`compute(predictions=[str], references=[str])` gives the mean of each kind.

    With `per_pair=True` it gives an array (n,) of each.
    """

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Lin, 'ROUGE: A Package for Automatic Evaluation of Summaries', ACL Workshop 2004",
            inputs_description="predictions and references: lists of strings of the same length",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references, per_pair=False):
        scorer = RougeScorer(list(KINDS))
        pairs = list(zip(references, predictions))
        # Each different pair once: baselines repeat themselves, and the longest common subsequence is slow.
        score_of = {pair: scorer.score(*pair) for pair in set(pairs)}
        values = {}
        for kind in KINDS:
            values[kind] = np.array([score_of[pair][kind].fmeasure for pair in pairs], dtype=float)
        if per_pair:
            return values
        return {kind: float(value.mean()) for kind, value in values.items()}
