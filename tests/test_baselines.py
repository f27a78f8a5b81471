"""The baselines that need no model: the same answer every time, and the one that their names promise."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainmyxray.errors import UserError
from explainmyxray.scoring import baselines


def test_majority_is_the_commonest_report_of_the_commonest_labels():
    labels = ["Mass", "Mass", "Mass", "Edema", "Edema"]
    train = pd.DataFrame({"labels": labels, "report": ["b", "a", "b", "z", "z"]})
    assert baselines.majority(train) == "b"
    assert baselines.majority(train.iloc[::-1]) == "b"


def test_majority_of_equally_common_reports_ignores_their_order():
    train = pd.DataFrame({"labels": ["Mass", "Edema"] * 2, "report": ["m2", "e2", "m1", "e1"]})
    assert baselines.majority(train) == baselines.majority(train.iloc[::-1]) == "e1"


def test_nearest_goes_by_direction_not_by_length():
    train = np.array([[10.0, 0.0], [0.0, 0.1], [0.0, 0.0]])
    test = np.array([[0.2, 5.0], [1.0, 0.9]])
    assert baselines.nearest(train, test).tolist() == [1, 0]


def named(**there) -> frozenset[str]:
    return frozenset(name for name, flag in there.items() if flag)


def separable(n: int, seed: int):
    """Features in which Mass and Edema are each a direction, on scales far apart."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6)) * [1, 100, 0.01, 1, 1, 1]
    sets = [named(Mass=row[0] > 0.3, Edema=row[1] > 90) for row in features]
    return features, sets


def test_classifier_learns_what_is_linear_and_repeats_itself():
    (x, y), (test, truth) = separable(400, 0), separable(200, 1)
    predicted = baselines.classifier(x, y, test, seed=42, patients=range(400))
    assert np.mean([a == b for a, b in zip(predicted, truth)]) > 0.9
    assert predicted == baselines.classifier(x, y, test, seed=42, patients=range(400))


def test_classifier_keeps_to_the_labels_of_training():
    x, _ = separable(60, 0)
    for labels in (frozenset(), frozenset({"Hernia"})):
        assert baselines.classifier(x, [labels] * 60, x, seed=1, patients=range(60)) == [labels] * 60


def test_classifier_sets_whole_patients_aside():
    # Each patient is a point of its own with a random label: memorising helps only where patients leak.
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 5)
    x = rng.normal(size=(60, 40))[patients]
    y = [named(Mass=flag) for flag in rng.integers(0, 2, 60)[patients]]
    by_image = baselines.classifier(x, y, x, 1, patients=range(300))
    by_patient = baselines.classifier(x, y, x, 1, patients=patients)
    assert by_image == y and by_patient != y


@given(st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=30), st.integers(0, 99))
def test_other_patients_never_shows_the_own_patient(patients, seed):
    patients = np.array(patients)
    if len(set(patients)) == 1:
        with pytest.raises(UserError, match="one patient"):
            baselines.other_patients(patients, seed)
        return
    chosen = baselines.other_patients(patients, seed)
    assert (patients[chosen] != patients).all()
    assert (chosen == baselines.other_patients(patients, seed)).all()
    if 2 * max(np.unique(patients, return_counts=True)[1]) <= len(patients):
        assert sorted(chosen) == list(range(len(patients)))


def test_other_patients_depends_on_the_seed():
    patients = [f"p{number}" for number in range(50)]
    assert (baselines.other_patients(patients, 1) != baselines.other_patients(patients, 2)).any()
