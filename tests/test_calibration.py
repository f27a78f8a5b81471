"""Calibration and risk against coverage: as scikit-learn has them, and right where truth is known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

from explainmyxray.comparing.comparison import ECE, compare_calibration
from explainmyxray.comparing.gate import worse_figures
from explainmyxray.pictures.calibration_plots import plot_calibration
from explainmyxray.reports.findings import FINDINGS, SHOWN_SHARE
from explainmyxray.scoring import calibration, intervals, sampled_reports
from explainmyxray.settings import Gate
from explainmyxray.tables import join_labels, rounded

SAMPLES = 16
NAMES = FINDINGS[:5]


def names_in(text: str) -> frozenset[str]:
    return frozenset(name for name in FINDINGS if name in text)


def draw(n: int, seed: int, overconfident: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Shares (n, 14) and what is there (n, 14): as often as the share says, or half as often."""
    rng = np.random.default_rng(seed)
    shares = rng.integers(0, SAMPLES + 1, (n, len(FINDINGS))) / SAMPLES
    return shares, rng.random(shares.shape) < (shares / 2 if overconfident else shares)


def table(n: int, seed: int = 0, noise: float = 0.2, split: str = "test") -> pd.DataFrame:
    """Sampled reports: each names the true labels, and others with probability `noise`."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(n):
        labels = frozenset(rng.choice(NAMES, size=rng.integers(0, 3), replace=False))
        sampled = []
        for _ in range(SAMPLES):
            wrong = frozenset(rng.choice(NAMES, size=1))
            sampled.append(wrong if rng.random() < noise else labels)
        greedy = frozenset() if rng.random() < 0.3 else labels  # misses what the consensus finds
        texts = {"report": labels, "greedy": greedy, "consensus": labels}
        rows.append(
            {name: f"It shows {' and '.join(sorted(found)) or 'nothing'} ." for name, found in texts.items()}
            | {
                "split": split,
                "image": f"{row}.png",
                "source": "phantom",
                "patient": f"p{row // 2}",
                "labels": join_labels(labels),
                "sampled": ";".join(join_labels(each) for each in sampled),
                "adapter": "0123456789abcdef",
            }
        )
    return pd.DataFrame(rows)


def score(frame: pd.DataFrame, decoding: str = "greedy") -> sampled_reports.SampledEvaluation:
    reports = frame[frame["split"] == "test"].set_index("image")[decoding]
    return sampled_reports.score_samples(frame, reports, 42, 200, labeler=names_in)


def test_bins_and_points_are_those_of_scikit_learn():
    shares, present = draw(60, 0)
    shown = shares >= SHOWN_SHARE
    expected = calibration_curve(present[shown], shares[shown], n_bins=calibration.NUM_BINS)
    count, share, there = calibration.bin_statistics(shares, present).sum(axis=0).T
    assert np.allclose(there[count > 0] / count[count > 0], expected[0])
    assert np.allclose(share[count > 0] / count[count > 0], expected[1])
    assert count.sum() == shown.sum()


def test_the_error_is_that_of_the_paper():
    """Two bins: 0.85 said, 0.5 there, of two; 0.25 said, 0 there, of one."""
    shares, present = np.zeros((3, 14)), np.zeros((3, 14), bool)
    shares[0, 0] = shares[1, 3] = 0.85
    shares[2, 1] = 0.25
    present[0, 0] = True
    sums = calibration.bin_statistics(shares, present).sum(axis=0)
    assert calibration.expected_calibration_error(sums) == pytest.approx((2 * 0.35 + 0.25) / 3)
    assert calibration.expected_calibration_error(np.zeros((10, 3))) == 0


def test_true_shares_have_the_error_of_chance_and_others_more():
    shares, present = draw(100, 1)
    error = calibration.expected_calibration_error(calibration.bin_statistics(shares, present).sum(axis=0))
    by_chance = calibration.error_by_chance(shares, 100, seed=0)
    assert 0 < by_chance < 0.05 and error < 2 * by_chance
    shares, present = draw(100, 1, overconfident=True)
    error = calibration.expected_calibration_error(calibration.bin_statistics(shares, present).sum(axis=0))
    assert error > 5 * by_chance


def test_a_resample_has_the_error_of_its_images_written_out():
    shares, present = draw(30, 2)
    patients = [f"p{row // 3}" for row in range(30)]
    weights = intervals.bootstrap_weights(patients, 4, seed=3)
    statistics = calibration.bin_statistics(shares, present)
    quick = calibration.expected_calibration_error(np.tensordot(weights, statistics, axes=1))
    for sample, times in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(30), times)
        written_out = calibration.bin_statistics(shares[rows], present[rows]).sum(axis=0)
        assert quick[sample] == pytest.approx(calibration.expected_calibration_error(written_out))


def test_those_with_the_most_agreement_are_kept_whatever_the_order():
    agreements = np.array([0.5, 1.0, 0.5, 0.25])
    ones = np.ones((1, 4))
    assert calibration.kept_weights(agreements, ones, 0.25).tolist() == [[0, 1, 0, 0]]
    assert calibration.kept_weights(agreements, ones, 0.5).tolist() == [[0.5, 1, 0.5, 0]]
    assert calibration.kept_weights(agreements, ones, 1.0).tolist() == [[1, 1, 1, 1]]
    twice = np.array([[0.0, 2, 1, 1]])  # a resample that has the second image twice
    assert calibration.kept_weights(agreements, twice, 0.5).tolist() == [[0, 2, 0, 0]]


def test_reports_whose_samples_agree_are_better_and_all_of_them_have_the_figure_of_all():
    frame = table(80, noise=0.3)
    result = score(frame)
    f1 = result.coverage.set_index("coverage")["micro_f1"]
    assert f1[0.5] > f1[1.0]
    assert f1[1.0] == pytest.approx(result.metrics["decodings"]["test"]["greedy"]["findings"]["micro_f1"])
    assert (result.coverage["low"] <= result.coverage["micro_f1"]).all()


def test_eval_json_has_both_decodings_with_intervals_of_each_split():
    frame = pd.concat([table(60), table(30, seed=1, split="val")], ignore_index=True)
    metrics = rounded(score(frame).metrics)  # raises on a list and on what is not finite
    assert metrics["decodings"]["test"]["n"] == 60 and metrics["decodings"]["val"]["n"] == 30
    for figures in metrics["decodings"].values():
        greedy, consensus = figures["greedy"], figures["consensus"]
        assert greedy["findings"]["micro_f1"] < consensus["findings"]["micro_f1"] == 1
        interval = greedy["ci95"]["findings"]["micro_f1"]
        assert interval["low"] < greedy["findings"]["micro_f1"] < interval["high"]
        assert figures["consensus_minus_greedy"]["low"] > 0
    found = metrics["calibration"]
    assert found["n"] == 60 and found["samples"] == SAMPLES
    assert found["ci95"]["low"] <= found["ece"] <= found["ci95"]["high"]
    assert sum(each["findings"] for each in found["bins"].values()) == found["findings"]
    assert set(found["coverage"]) == {"20", "30", "40", "50", "60", "70", "80", "90", "100"}


def test_samples_come_back_from_their_cell():
    reports = ["Findings: A mass is seen.", "The lungs are clear.", "There is a mass and an effusion."]
    expected = [{"Mass"}, set(), {"Mass", "Effusion"}]
    assert sampled_reports.split_samples(sampled_reports.join_samples(reports)) == expected


def test_a_worse_calibration_is_told_from_chance_and_fails_the_gate():
    gate = Gate(max_drop=0.0, max_same_text=0.2, max_malformed=0.01)
    good, same, bad = table(120, noise=0.05), table(120, noise=0.05), table(120, noise=0.6)
    worse = compare_calibration(good, bad, 500, 0)
    assert worse["figure"].tolist() == [ECE] and worse["low"][0] > 0
    (line,) = worse_figures(worse, gate)
    assert line.startswith("calibration.ece is worse by more than chance")
    assert worse_figures(compare_calibration(bad, good, 500, 0), gate) == []
    assert compare_calibration(good, same, 500, 0)["within_noise"].all()
    other = good.assign(patient="q" + good["patient"])  # another test set
    assert compare_calibration(good, other, 500, 0).empty


def test_the_picture_has_the_same_bytes_each_time(tmp_path):
    result = score(table(60))
    for name in ("a.png", "b.png"):
        plot_calibration(result.reliability, result.coverage, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size > 10_000
