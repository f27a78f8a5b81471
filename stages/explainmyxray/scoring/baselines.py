"""What reports score without a language model: arrays and tables in, texts, indices or findings out."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from explainmyxray.errors import UserError
from explainmyxray.scoring.finding_scores import Findings, micro_f1, outcome_counts

C_VALUES = (0.001, 0.01, 0.1, 1.0)  # inverse strength of regularisation, on standardised features
THRESHOLDS = (0.2, 0.3, 0.4, 0.5)  # of a finding's probability; a rare finding seldom reaches one half
DEFAULT_C, DEFAULT_THRESHOLD = 0.01, 0.5  # where there are too few patients to choose
MIN_PATIENTS = 5  # of which a fifth is set aside to choose C and threshold


def majority(train: pd.DataFrame) -> str:
    """The commonest report of the commonest label combination of `train` (labels, report), for every image.

    Of equally common ones the first in alphabetical order, so that it does not depend on the order of rows.
    """
    commonest_labels = _commonest(train["labels"])
    return _commonest(train.loc[train["labels"] == commonest_labels, "report"])


def nearest(train_features: np.ndarray, test_features: np.ndarray) -> np.ndarray:
    """For each of (m, d) test features the index of the most similar of (n, d) by cosine: int64 (m,)."""
    similarity = _normalized(test_features) @ _normalized(train_features).T
    return np.argmax(similarity, axis=1)


def classifier(
    train_features: np.ndarray,
    train_labels: Sequence[Findings],
    test_features: np.ndarray,
    seed: int,
    patients: Sequence[str],
) -> list[Findings]:
    """Findings of the (m, d) test features by a logistic regression a finding on the (n, d) of training.

    `train_labels` are n sets, `patients` n names. C and threshold, the same for all findings, are those with
    the best micro-F1 on the images of a fifth of the patients, set aside: a weak baseline would flatter the
    model.
    """
    c, threshold = _select_c_and_threshold(train_features, train_labels, patients, seed)
    probabilities = _predict_proba(train_features, train_labels, test_features, c)
    return _findings_from(probabilities, threshold, len(test_features))


def other_patients(patients: Sequence[str], seed: int) -> np.ndarray:
    """For each of n images the index of another patient's: int64 (n,), a permutation wherever one exists.

    So the shown images are the test set's own, each once. None exists where one patient has over half of the
    images: then each image gets a random one of the other patients. Raises UserError where there is one
    patient only.
    """
    names, patient_index, num_images = np.unique(
        np.asarray(patients, dtype=str), return_inverse=True, return_counts=True
    )
    if len(names) < 2:
        raise UserError("the test split has images of one patient only: `blind` needs two, so use more data")
    rng = np.random.default_rng(seed)
    total, largest = len(patient_index), num_images.max()
    if 2 * largest > total:
        return _random_other_patients(patient_index, rng)
    # 1) Line the images up: each patient's stand together, patients and their images in random order.
    image_keys = rng.random(total)
    patient_keys = rng.permutation(len(names))[patient_index]
    line = np.lexsort([image_keys, patient_keys])
    # 2) Rotate the line by the largest patient's number of images. No patient's block is longer, so every
    # image leaves its own block; and none comes back from the other end, for that block has at most half of
    # the line.
    shown = np.empty(total, dtype=np.int64)
    shown[line] = np.roll(line, -largest)
    return shown


def _random_other_patients(patient_index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each image a random one of the other patients, so that some are shown more than once."""
    shown = np.empty(len(patient_index), dtype=np.int64)
    for image, patient in enumerate(patient_index):
        shown[image] = rng.choice(np.flatnonzero(patient_index != patient))
    return shown


def _commonest(texts: pd.Series) -> str:
    return texts.value_counts().sort_index().idxmax()


def _normalized(features: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    features = np.asarray(features, dtype=float)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(float).tiny)


def _select_c_and_threshold(
    features: np.ndarray, labels: Sequence[Findings], patients: Sequence[str], seed: int
) -> tuple[float, float]:
    """C and threshold with the best micro-F1 on a fifth of the patients."""
    patients = np.asarray(patients, dtype=str)
    if len(np.unique(patients)) < MIN_PATIENTS:
        return DEFAULT_C, DEFAULT_THRESHOLD
    # 1) Set a fifth of the patients aside, with all their images.
    splitter = GroupShuffleSplit(1, test_size=0.2, random_state=seed)
    fit_rows, held_out_rows = next(splitter.split(features, groups=patients))
    fit_labels = [labels[row] for row in fit_rows]
    held_out_labels = [labels[row] for row in held_out_rows]
    # 2) Fit once for each C, and score each threshold.
    candidates = []
    for c in C_VALUES:
        probabilities = _predict_proba(features[fit_rows], fit_labels, features[held_out_rows], c)
        for threshold in THRESHOLDS:
            predicted = _findings_from(probabilities, threshold, len(held_out_rows))
            score = micro_f1(outcome_counts(held_out_labels, predicted).sum(axis=0))
            candidates.append((float(score), -c, threshold))
    # 3) Of equal scores the simpler model (smaller C), then the more cautious threshold.
    _, negative_c, threshold = max(candidates)
    return -negative_c, threshold


def _predict_proba(
    features: np.ndarray, labels: Sequence[Findings], test_features: np.ndarray, c: float
) -> dict[str, np.ndarray]:
    """For each finding that training has its probability in each test image: (m,)."""
    probabilities = {}
    for name in sorted(frozenset().union(*labels)):
        target = np.array([name in findings for findings in labels])
        if target.all():
            # A regression needs two classes; a finding of every training image is expected everywhere.
            probabilities[name] = np.ones(len(test_features))
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        model.fit(features, target)
        probabilities[name] = model.predict_proba(test_features)[:, 1]
    return probabilities


def _findings_from(probabilities: dict[str, np.ndarray], threshold: float, num_images: int) -> list[Findings]:
    """For each image the findings whose probability reaches the threshold."""
    found = []
    for image in range(num_images):
        names = [name for name, probability in probabilities.items() if probability[image] >= threshold]
        found.append(frozenset(names))
    return found
