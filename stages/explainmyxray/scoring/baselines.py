"""What a report scores without a language model's help: arrays and tables in, texts, indices or findings out."""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from explainmyxray.errors import UserError
from explainmyxray.scoring import finding_scores

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse regularisation, on standardised features
THRESHOLDS = (0.2, 0.3, 0.4, 0.5)  # a rare finding seldom reaches one half


def majority(train: pd.DataFrame) -> str:
    """One report for every image: the commonest report of the commonest label combination of `train` (labels, report).

    Of equally common ones the first in alphabetical order, so that it does not depend on the order of rows.
    """
    return _commonest(train.loc[train["labels"] == _commonest(train["labels"]), "report"])


def nearest(train_features: np.ndarray, test_features: np.ndarray) -> np.ndarray:
    """For each of (m, d) test features the index of the most similar of (n, d) by cosine: int64 (m,)."""
    return np.argmax(_unit(test_features) @ _unit(train_features).T, axis=1)


def classifier(train_features, train_labels, test_features, seed: int, patients=None) -> list[frozenset[str]]:
    """Findings of the (m, d) test features by a logistic regression a finding on the (n, d) of training.

    `train_labels` are n sets. Strength and threshold, the same for all findings, are those with the best micro-F1 on a
    fifth of training set aside, by `patients` (n names) where given: a weak baseline would flatter the model.
    """
    train_labels = list(train_labels)
    if not frozenset().union(*train_labels):
        return [frozenset()] * len(test_features)
    groups = range(len(train_labels)) if patients is None else np.asarray(patients, dtype=str)
    strength, threshold = _choose(np.asarray(train_features), train_labels, groups, seed)
    return _fit_predict(train_features, train_labels, test_features, strength)(threshold)


def other_patients(patients, seed: int) -> np.ndarray:
    """For each of n images the index of one of another patient: int64 (n,), a permutation wherever one exists.

    So the shown images are the test set's own, each once. None exists where one patient has over half of the images:
    then each image gets a random one of the other patients. Raises UserError where there is one patient only.
    """
    names, patient_of, sizes = np.unique(
        np.asarray(patients, dtype=str), return_inverse=True, return_counts=True
    )
    if len(names) < 2:
        raise UserError("the test split has images of one patient only: `blind` needs two, so use more data")
    rng = np.random.default_rng(seed)
    if 2 * sizes.max() > len(patient_of):
        return np.array([rng.choice(np.flatnonzero(patient_of != own)) for own in patient_of])
    # Images side by side by patient, patients in random order: a turn by the largest patient leaves each one behind.
    order = np.lexsort([rng.random(len(patient_of)), rng.permutation(len(names))[patient_of]])
    chosen = np.empty(len(order), dtype=np.int64)
    chosen[order] = np.roll(order, -sizes.max())
    return chosen


def _commonest(texts: pd.Series) -> str:
    return texts.value_counts().sort_index().idxmax()


def _unit(features) -> np.ndarray:
    features = np.asarray(features, dtype=float)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(float).tiny)


def _choose(features, labels, groups, seed) -> tuple[float, float]:
    if len(set(groups)) < 5:  # too few patients to set some aside
        return 0.01, 0.5
    ((fit, held),) = GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(features, groups=groups)
    true = [labels[row] for row in held]
    best = (-1.0, 0.0, 0.0)
    for strength in STRENGTHS:
        predict = _fit_predict(features[fit], [labels[row] for row in fit], features[held], strength)
        for threshold in THRESHOLDS:
            score = float(finding_scores.micro_f1(finding_scores.counts(true, predict(threshold)).sum(0)))
            best = max(best, (score, -strength, threshold))  # of equals the simpler and the more cautious
    return -best[1], best[2]


def _fit_predict(features, labels, test_features, strength):
    """Fit one regression a finding seen in training; the function returned gives the findings above a threshold."""
    probability = {}
    for name in sorted(frozenset().union(*labels)):
        target = np.array([name in each for each in labels])
        if target.all():
            probability[name] = np.ones(len(test_features))
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        probability[name] = model.fit(features, target).predict_proba(test_features)[:, 1]
    rows = range(len(test_features))
    return lambda threshold: [
        frozenset(name for name, p in probability.items() if p[row] >= threshold) for row in rows
    ]
