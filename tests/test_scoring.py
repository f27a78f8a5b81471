"""The figures: equal to the libraries called directly, the same for a resample, whole in eval.json."""

import os
import subprocess
import sys

import evaluate
import numpy as np
import pandas as pd
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score, precision_recall_fscore_support

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.scoring import bleu, evaluation, finding_scores, intervals, malformed, rouge
from explainmyxray.scoring.sufficient_statistics import (
    metrics_from_statistics,
    sufficient_statistics,
    total,
)
from explainmyxray.tables import join_labels, rounded, split_labels

REPORTS = [
    "FINDINGS: The heart is enlarged. There is a small effusion; no pneumothorax. IMPRESSION: 1. Enlarged.",
    "The lungs are clear.  No acute cardiopulmonary process\n(compared with 12/3).",
    "There are airspace opacities, consistent with pneumonia. The heart is not enlarging; each lung clears.",
    'A nodule isn\'t seen & the costophrenic angles are sharp; follow-up "as needed".',
    "",
]
WORDS = malformed.vocabulary(["There is, we see nothing and " + " ".join(FINDINGS)])
SAMPLED = {  # of sampled_reports
    "decodings": {
        "test": {"greedy": {"findings": {"micro_f1": 0.5}}, "consensus": {"findings": {"micro_f1": 0.75}}}
    },
    "calibration": {"ece": 0.125},
}
SETS = st.lists(st.frozensets(st.sampled_from(FINDINGS), max_size=5), min_size=12, max_size=12)


def names_in(text: str) -> frozenset[str]:
    """A stand-in for the labeler: the names that stand in the text."""
    return frozenset(name for name in FINDINGS if name in text)


def table(n: int, seed: int = 0, right: float = 0.6) -> pd.DataFrame:
    """Predictions: a system keeps the true labels with probability `right`, else it writes others."""
    rng = np.random.default_rng(seed)

    def draw():
        return frozenset(rng.choice(FINDINGS[:6], size=rng.integers(0, 3), replace=False))

    def word(labels):
        return f"{rng.choice(['There is', 'We see'])} {' and '.join(sorted(labels)) or 'nothing'} ."

    rows = []
    for row in range(n):
        labels = draw()
        guesses = [labels if rng.random() < right else draw() for _ in evaluation.SYSTEMS]
        known = {
            "image": f"{row}.png",
            "source": "phantom",
            "patient": f"p{row // 2}",
            "labels": join_labels(labels),
            "view": rng.choice(["PA", "AP", ""]),
            "age_years": rng.choice(["", "0.5", "40", "87"]),
            "sex": "F",
        }
        texts = [word(findings) for findings in (labels, *guesses)]
        rows.append(known | dict(zip(("report", *evaluation.SYSTEMS), texts)))
    return pd.DataFrame(rows)


def direct_bleu(predictions, references):
    return sacrebleu.corpus_bleu(predictions, [references]).score


def direct_rouge(predictions, references, kind):
    scorer = RougeScorer([kind])
    return np.mean(
        [scorer.score(target, text)[kind].fmeasure for target, text in zip(references, predictions)]
    )


A_REPORT = st.text(alphabet="abc d.,-1ü\n", max_size=40) | st.sampled_from(REPORTS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(A_REPORT, A_REPORT), min_size=1))
def test_metric_modules_equal_the_libraries_to_the_last_digit(pairs):
    predictions, references = map(list, zip(*pairs))
    both = {"predictions": predictions, "references": references}
    result = evaluate.load(bleu.__file__, keep_in_memory=True).compute(**both)
    assert result["score"] == direct_bleu(predictions, references)
    assert bleu.from_statistics(bleu.statistics(predictions, references).sum(0)) == result["score"]
    result = evaluate.load(rouge.__file__, keep_in_memory=True).compute(**both)
    assert result == {kind: direct_rouge(predictions, references, kind) for kind in rouge.KINDS}


def test_metric_modules_equal_the_libraries_on_reports():
    predictions, references = REPORTS[:4] + REPORTS[:3], REPORTS[1:5] + REPORTS[:3]
    both = {"predictions": predictions, "references": references}
    result = evaluate.load(bleu.__file__).compute(**both)
    assert 0 < result["score"] == direct_bleu(predictions, references) < 100
    assert (
        result["signature"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )
    assert evaluate.load(rouge.__file__).compute(**both)["rougeL"] == direct_rouge(
        predictions, references, "rougeL"
    )


@pytest.mark.slow
def test_metric_modules_load_without_network_from_an_empty_cache(tmp_path):
    code = f"""
import socket
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
for path in {bleu.__file__!r}, {rouge.__file__!r}:
    print(evaluate.load(path, keep_in_memory=True).compute(predictions=["a b c d"], references=["a b c d"]))
"""
    offline = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = offline | {"HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "100.0" in run.stdout and "'rougeL': 1.0" in run.stdout


@given(SETS, SETS)
def test_findings_figures_equal_sklearn(true, predicted):
    def as_array(sets):
        return np.array([[name in each for name in FINDINGS] for each in sets])

    y, z = as_array(true), as_array(predicted)
    counted = finding_scores.outcome_counts(true, predicted).sum(0)
    expected = np.array(precision_recall_fscore_support(y, z, zero_division=0)).T
    figures = finding_scores.per_finding(counted)
    assert np.allclose([list(figures[name].values()) for name in FINDINGS], expected, atol=1e-12)
    assert np.isclose(finding_scores.micro_f1(counted), f1_score(y, z, average="micro", zero_division=0))
    there = y.any(0)
    macro = (
        f1_score(y[:, there], z[:, there], average=None, zero_division=0).mean() if there.sum() > 1 else None
    )
    assert macro is None or np.isclose(finding_scores.macro_f1(counted), macro)
    assert finding_scores.exact_match(true, predicted).mean() == (y == z).all(1).mean()


def test_findings_of_nothing_are_finite_and_complete():
    nothing = [frozenset()] * 3
    counted = finding_scores.outcome_counts(nothing, nothing).sum(0)
    assert list(finding_scores.per_finding(counted)) == list(FINDINGS)
    assert finding_scores.micro_f1(counted) == finding_scores.macro_f1(counted) == 0
    assert finding_scores.exact_match(nothing, nothing).tolist() == [1, 1, 1]


def test_a_name_outside_the_14_is_refused():
    with pytest.raises(ValueError, match="No Finding"):
        finding_scores.outcome_counts([frozenset({"No Finding"})], [frozenset()])


def test_confusion_pairs_what_was_missed_with_what_was_written_instead():
    true = [frozenset({"Mass", "Edema"}), frozenset({"Mass"}), frozenset(), frozenset({"Hernia"})]
    predicted = [frozenset({"Edema", "Nodule"}), frozenset(), frozenset({"Effusion"}), frozenset({"Hernia"})]
    instead = [("Mass", "Nodule"), ("Mass", "nothing"), ("nothing", "Effusion")]
    expected = [("Edema", "Edema"), *instead, ("Hernia", "Hernia")]
    assert finding_scores.confusion_pairs(true, predicted) == expected


def test_resamples_draw_whole_patients():
    patients = ["b", "a", "b", "c", "a", "b"]
    weights = intervals.bootstrap_weights(patients, 50, seed=1)
    assert (weights[:, [0, 0, 1]] == weights[:, [2, 5, 4]]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()  # as many patients as there are
    assert (weights == intervals.bootstrap_weights(patients, 50, seed=1)).all()
    assert (weights != intervals.bootstrap_weights(patients, 50, seed=2)).any()
    order = [3, 2, 1, 0, 5, 4]
    assert (weights[:, order] == intervals.bootstrap_weights(np.array(patients)[order], 50, seed=1)).all()


def statistics_of(frame: pd.DataFrame):
    true = [split_labels(labels) for labels in frame["labels"]]
    predicted = [names_in(text) for text in frame["generated"]]
    return sufficient_statistics(frame["generated"], frame["report"], true, predicted)


def test_a_resample_scores_as_if_its_images_were_written_out():
    frame = table(40)
    weights = intervals.bootstrap_weights(frame["patient"], 5, seed=3)
    quick = metrics_from_statistics(intervals.resample(statistics_of(frame), weights))
    for sample, times in enumerate(weights.astype(int)):
        written_out = frame.loc[frame.index.repeat(times)]
        slow = metrics_from_statistics(total(statistics_of(written_out)))
        assert {name: pytest.approx(value[sample]) for name, value in quick.items()} == slow
        assert quick["bleu"][sample] == direct_bleu(
            written_out["generated"].tolist(), written_out["report"].tolist()
        )


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        of_patient = rng.normal(size=60)  # three images of a patient agree: 60 values, not 180
        patients = np.repeat(np.arange(60), 3)
        rows = {"value": of_patient[patients], "n": np.ones(180)}
        sums = intervals.resample(rows, intervals.bootstrap_weights(patients, 400, trial))
        interval = intervals.confidence_interval(sums["value"] / sums["n"])
        hits += interval["low"] <= 0 <= interval["high"]
    assert 180 <= hits <= 199  # images weights singly would give about 150


@pytest.fixture(scope="module")
def scored():
    frame = table(120)
    return frame, evaluation.score(frame, WORDS, seed=42, bootstrap_samples=200, labeler=names_in)


def test_eval_json_is_what_the_design_says(scored):
    frame, result = scored
    metrics = rounded(result.metrics)  # raises on a list and on what is not finite
    assert metrics["n"] == 120 and metrics["patients"] == 60
    assert metrics["bleu"] == round(direct_bleu(frame["generated"].tolist(), frame["report"].tolist()), 4)
    assert metrics["distinct_reports"] == frame["generated"].nunique()
    assert set(metrics["findings"]) == {"micro_f1", "macro_f1", "exact_match", "per_finding"}
    assert list(metrics["findings"]["per_finding"]) == list(FINDINGS)
    assert list(metrics["baselines"]) == list(evaluation.BASELINES)
    for figures in metrics["baselines"].values():
        assert {"bleu", "rouge1", "rouge2", "rougeL", "findings", "distinct_reports"} <= set(figures)
        assert set(figures["findings"]) == {"micro_f1", "macro_f1", "exact_match"}


def test_the_headline_is_the_few_figures_of_the_evaluation_that_fit_on_a_screen(scored):
    metrics = scored[1].metrics | SAMPLED
    headline = evaluation.headline(metrics)
    assert headline["bleu"] == metrics["bleu"] and headline["micro_f1"] == metrics["findings"]["micro_f1"]
    assert headline["blind"] == metrics["baselines"]["blind"]["findings"]["micro_f1"]
    assert [headline[name] for name in ("greedy", "consensus", "ece")] == [0.5, 0.75, 0.125]
    # `dvc metrics show` puts four blanks before a column, each as wide as its name or a figure like 52.7079.
    widths = [max(len(name), 7) + 4 for name in headline]
    assert len("metrics/headline.json") + sum(widths) <= 120


def test_headline_figures_lie_in_their_intervals(scored):
    result = scored[1]
    for section, place in (
        (result.metrics, result.metrics["ci95"]),
        (result.metrics["findings"], result.metrics["ci95"]["findings"]),
    ):
        named = [name for name in place if name != "findings"]
        assert named and all(place[name]["low"] < section[name] < place[name]["high"] for name in named)
    assert len(result.systems) == 7 * 5 and (result.systems["low"] <= result.systems["high"]).all()
    assert list(result.findings["finding"]) == list(FINDINGS)
    assert result.findings["f1"].between(result.findings["low"], result.findings["high"]).all()


def test_slices_add_up_and_say_when_they_are_too_small(scored):
    frame, result = scored
    slices = result.metrics["slices"]
    assert slices["source"]["phantom"]["bleu"] == pytest.approx(result.metrics["bleu"])
    assert sum(part["n"] for part in slices["findings"].values()) == 120
    assert set(slices["age"]) == {"under_18", "40_to_64", "65_and_over"}
    assert set(slices["view"]) == {"PA", "AP"}  # unknown ones are in no slice
    for part in slices["view"].values():
        assert part["too_small"] == (part["n"] < 30)
    alone = evaluation.score(frame[frame["view"] == "PA"], WORDS, 42, 10, labeler=names_in).metrics
    assert slices["view"]["PA"]["micro_f1"] == pytest.approx(alone["findings"]["micro_f1"])
    assert "micro_f1" not in slices["findings"]["none"] and slices["findings"]["none"]["exact_match"] > 0


def test_scoring_again_or_in_another_order_gives_the_same_metrics(scored):
    frame, result = scored
    shuffled = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    again = evaluation.score(shuffled, WORDS, 42, 200, labeler=names_in)
    assert rounded(again.metrics) == rounded(result.metrics)


def test_a_perfect_model_and_a_silent_one():
    frame = table(40)
    frame["generated"], frame["majority"] = frame["report"], ""
    metrics = evaluation.score(frame, WORDS, 42, 50, labeler=names_in).metrics
    assert metrics["bleu"] == pytest.approx(100) and metrics["rougeL"] == 1
    assert metrics["findings"]["macro_f1"] == metrics["findings"]["exact_match"] == 1
    silent = metrics["baselines"]["majority"]
    assert silent["bleu"] == silent["rougeL"] == silent["findings"]["micro_f1"] == 0
    assert silent["findings"]["exact_match"] == (frame["labels"] == "No Finding").mean()


def test_order_goes_from_the_best_report_to_the_worst(scored):
    frame, result = scored
    wrong = [len(split_labels(frame["labels"][row]) ^ result.predicted[row]) for row in result.best_to_worst]
    assert sorted(result.best_to_worst) == list(range(120))
    assert wrong[0] == 0 and wrong[-1] == max(wrong)


def test_repetition_is_counted():
    frame = table(10)
    frame["generated"] = ["The lungs are clear. The LUNGS are clear.", *["The lungs are clear."] * 9]
    metrics = evaluation.score(frame, WORDS, 42, 10, labeler=names_in).metrics
    assert metrics["repetitive_reports"] == 1 and metrics["distinct_reports"] == 2


def test_the_labeler_reads_the_reports_unless_told_otherwise():
    frame = table(6)
    frame["labels"], frame["generated"] = "Pneumothorax", "There is a pneumothorax. No pleural effusion."
    assert evaluation.score(frame, WORDS, 42, 10).predicted == [frozenset({"Pneumothorax"})] * 6


# --- malformed reports ---

REFERENCE = "Findings: A mass is seen. Impression: Mass."
KNOWN = frozenset(malformed.vocabulary([REFERENCE, "There is no pneumothorax."]))


@pytest.mark.parametrize(
    "text, defects",
    [
        ("Findings: No mass is seen. Impression: No mass.", set()),
        ("FINDINGS: no mass. IMPRESSION: 1. no mass.", set()),
        ("Findings: A mass<loc0597> is seen. Impression: Mass.", {"non_word"}),
        ("Findings: A mass is seen.", {"no_impression"}),
        ("Findings: A mass is seen. Impression:", {"no_impression", "cut_off"}),
        ("Findings: A mass is seen. Impression: Mass is", {"cut_off"}),
        ("Findings: A massatedated is seen. Impression: Mass.", {"unknown_word"}),
        ("", {"no_impression", "cut_off"}),
    ],
)
def test_defects_of_a_malformed_report_are_named(text, defects):
    assert malformed.defects(text, REFERENCE, KNOWN) == defects


def test_what_the_reference_lacks_is_not_asked_of_a_report():
    assert malformed.defects("No mass", "A mass is seen", KNOWN) == set()


def test_malformed_reports_are_counted_for_every_system(scored):
    frame, _ = scored
    frame = frame.copy()
    frame.loc[:2, "generated"] = [
        "We see <loc0001> nothing .",
        "We see nonsense .",
        "We see <seg002> nonsense",
    ]
    metrics = evaluation.score(frame, WORDS, 42, 10, labeler=names_in).metrics
    counts = {"any": 3, "non_word": 2, "no_impression": 0, "cut_off": 1, "unknown_word": 2}
    assert metrics["malformed_reports"] == counts
    assert evaluation.headline(metrics | SAMPLED)["malformed"] == 3
    for figures in metrics["baselines"].values():
        assert figures["malformed_reports"]["any"] == 0


def test_every_system_has_figures_on_the_films_of_each_source():
    """As if those films were a test set of their own; intervals draw patients of all sources."""
    rows = table(80)
    assert evaluation.score(rows, WORDS, 42, 50, labeler=names_in).metrics["by_source"] == {}
    rows["source"] = ["openi" if number % 4 == 0 else "nih_sample" for number in range(80)]
    both = evaluation.score(rows, WORDS, 42, 200, labeler=names_in).metrics["by_source"]
    assert list(both) == ["nih_sample", "openi"]
    for name, figures in both.items():
        alone = evaluation.score(rows[rows["source"] == name], WORDS, 42, 200, labeler=names_in).metrics
        assert figures["n"] == alone["n"]
        for system in ("nearest", "blind"):
            expected = alone["baselines"][system]
            assert figures[system]["micro_f1"] == pytest.approx(expected["findings"]["micro_f1"])
            assert figures[system]["bleu"] == pytest.approx(expected["bleu"])
        assert figures["ceiling"]["ci95"]["low"] < figures["ceiling"]["micro_f1"]
        assert figures["ceiling"]["micro_f1"] < figures["ceiling"]["ci95"]["high"]
