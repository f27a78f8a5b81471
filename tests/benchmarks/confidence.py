"""Which statistic of the model tells whether a report's findings are right?

    python tests/benchmarks/confidence.py    # after `make repro`: it reads models/adapter

On phantoms that no training saw, each statistic of a report is a score for "the report names exactly the
findings that are drawn", and its AUROC says how well it tells right reports from wrong ones: 0.5 is a coin.
The same for single findings: does the share of sampled reports that assert a finding tell where it is drawn?
Intervals by bootstrap over phantoms. The last line is JSON.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[2]
os.chdir(ROOT)
sys.path.append(str(ROOT / "stages"))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from tqdm import tqdm  # noqa: E402

from explainmyxray.explaining.loading import ADAPTER, load_explainer  # noqa: E402
from explainmyxray.generation import generate_batch, sample_reports  # noqa: E402
from explainmyxray.reports.findings import FINDINGS  # noqa: E402
from explainmyxray.reports.labeler import positive_findings  # noqa: E402
from explainmyxray.sources import phantom  # noqa: E402
from explainmyxray.tables import split_labels  # noqa: E402
from explainmyxray.training.loss import token_losses  # noqa: E402

SEED, COUNT, SAMPLES = 20270, 300, 32
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", default=ADAPTER)
    options = parser.parse_args()

    explainer = load_explainer(options.adapter, 0)
    rows, shares = [], []
    films = list(phantom.sample(phantom.PIPELINE, SEED, COUNT, explainer.side))
    for film in tqdm(films, desc="measuring", unit="phantom", mininterval=5):
        drawn = frozenset(split_labels(film.study["labels"])) - {"No Finding"}
        statistics, share = measure(explainer, film.read())
        rows.append({"right": statistics.pop("findings") == drawn, **statistics})
        shares.append([{"drawn": name in drawn, "share": share[name]} for name in FINDINGS])
    table = pd.DataFrame(rows)

    scores = {}
    for name in table.columns.drop("right"):
        scores[name] = auroc(table["right"].to_numpy(), table[name].to_numpy())
    of_findings = pd.DataFrame([each for image in shares for each in image])
    scores["a finding's share of samples"] = auroc(
        of_findings["drawn"].to_numpy(), of_findings["share"].to_numpy(), group=len(FINDINGS)
    )

    print(
        f"{COUNT} phantoms, {SAMPLES} samples each; {table['right'].mean():.3f} of the reports name "
        "exactly what is drawn"
    )
    for name, (value, low, high) in scores.items():
        print(f"{name:<32}{value:.3f} ({low:.3f} to {high:.3f})")
    for low in np.arange(0, 1, 0.25):
        inside = of_findings[(of_findings["share"] > low) & (of_findings["share"] <= low + 0.25)]
        print(
            f"findings in {low:.2f} to {low + 0.25:.2f} of the samples: {len(inside)}, drawn "
            f"{inside['drawn'].mean():.2f}"
        )
    print(json.dumps({name: round(value, 3) for name, (value, _, _) in scores.items()}))


@torch.inference_mode()
def measure(explainer, image) -> tuple[dict, dict[str, float]]:
    """Statistics of the report on one image, with the `findings`
    that it asserts; and each finding's share of the samples.
    """
    model, processor = explainer.model, explainer.processor
    (report,) = generate_batch(model, processor, [image], explainer.generation)
    batch = processor.training_batch([(image, report)])
    on_device = {name: value.to(model.device) for name, value in batch.items()}
    (losses,) = token_losses(model, on_device)
    (samples,) = sample_reports(model, processor, [image], explainer.generation, SAMPLES, explainer.seed)

    findings = positive_findings(report)
    sampled = [positive_findings(text) for text in samples]
    share = {name: float(np.mean([name in each for each in sampled])) for name in FINDINGS}
    statistics = {
        "findings": findings,
        "mean token probability": losses.neg().exp().mean().item(),
        "least token probability": losses.neg().exp().min().item(),
        "log-probability of the report": -losses.sum().item(),
        "samples with the same findings": float(np.mean([each == findings for each in sampled])),
        "mean F1 with the samples": float(np.mean([agreement(findings, each) for each in sampled])),
        "findings least sure": min(max(part, 1 - part) for part in share.values()),
    }
    return statistics, share


def agreement(one: frozenset[str], other: frozenset[str]) -> float:
    """F1 of two sets of findings; 1 for two empty ones."""
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def auroc(right: np.ndarray, score: np.ndarray, group: int = 1) -> tuple[float, float, float]:
    """AUROC with its 95 % interval; `group` rows in a row belong to one phantom and are drawn together."""
    rng = np.random.default_rng(0)
    right, score = right.reshape(-1, group), score.reshape(-1, group)
    values = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(right), len(right))
        if 0 < right[drawn].mean() < 1:
            values.append(roc_auc_score(right[drawn].ravel(), score[drawn].ravel()))
    low, high = np.quantile(values, (0.025, 0.975))
    return roc_auc_score(right.ravel(), score.ravel()), low, high


if __name__ == "__main__":
    main()
