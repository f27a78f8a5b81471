"""The report that a person with a GPU runs, here shortened on
a CPU: every section measures, and one that fails is told.
"""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import gpu_report
from benchmarks import gpu_sections, processes, recipes
from benchmarks.gpu_sections import Bench, Row


def run_report(folder: Path, monkeypatch, *arguments: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--folder", str(folder), *arguments])
    gpu_report.main()
    return json.loads((folder / "gpu_report.json").read_text())


@pytest.mark.slow
def test_every_section_measures_on_a_cpu(tmp_path, monkeypatch):
    rows = run_report(tmp_path, monkeypatch)
    figures = {(row["section"], row["what"]): row for row in rows}
    assert not [row for row in rows if row["value"] == "failed" or row["what"] == "failed"]

    assert figures["machine", "GPU"]["value"] == "none"
    for recipe in (gpu_sections.PLAIN, recipes.GUIDE, recipes.FOUR_BIT, recipes.AUTO):
        assert figures["training", recipe]["value"] > 0
        assert figures["training", f"{recipe}, peak memory"]["value"] > 0
    assert "estimated" in figures["training", f"{recipes.AUTO}, peak memory"]["note"]
    for size in (1, 32, 128):
        assert figures["generation", f"batch of {size}"]["value"] > 0
    assert figures["finite", "steps"]["value"] == gpu_sections.SHORT.finite_steps
    assert figures["finite", "losses that are not finite"]["value"] == 0
    assert figures["finite", "gradient norms that are not finite"]["value"] == 0
    assert figures["two runs", "adapters"]["value"] == "equal in every byte"
    assert figures["kill", "adapter after it"]["value"] == "equal in every byte"
    assert figures["two GPUs", "not run"]["note"] == "0 GPUs here"

    lines = (tmp_path / "gpu_report.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(line.count("|") == 5 for line in lines)


@pytest.fixture
def only_faked_sections(monkeypatch):
    """No section measures anything but what a test puts in its place."""
    for name in (
        "describe_machine",
        "prepare_base",
        "measure_training",
        "measure_generation",
        "measure_finiteness",
        "measure_runs",
        "measure_two_gpus",
    ):
        monkeypatch.setattr(gpu_sections, name, lambda bench, deadline: iter(()))


def test_a_section_that_fails_says_why_and_the_rest_goes_on(only_faked_sections, tmp_path, monkeypatch):
    def fails_halfway(bench: Bench, deadline: float):
        yield Row("training", "plain recipe", 3.5, "images/s")
        raise RuntimeError("CUDA error: an illegal | access\nmore lines")

    monkeypatch.setattr(gpu_sections, "measure_training", fails_halfway)
    monkeypatch.setattr(
        gpu_sections, "measure_runs", lambda *args: iter([Row("two runs", "adapters", "equal")])
    )
    rows = run_report(tmp_path, monkeypatch)
    assert [row["what"] for row in rows] == ["plain recipe", "failed", "adapters", "this report"]
    assert rows[1]["note"] == "RuntimeError: CUDA error: an illegal | access"
    assert "an illegal \\| access" in (tmp_path / "gpu_report.md").read_text()


def test_a_section_without_its_base_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_sections, "prepare_base", lambda *args: 1 / 0)
    monkeypatch.setattr(gpu_sections, "measure_runs", lambda *args: iter(()))
    rows = {row["section"]: row for row in run_report(tmp_path, monkeypatch)}
    assert rows["base"]["note"] == "ZeroDivisionError: division by zero"
    for section in ("training", "generation", "finite"):
        assert rows[section]["note"] == "not run: the base could not be prepared"


def test_what_hangs_is_cut_off_and_what_has_no_time_left_is_not_begun(
    only_faked_sections, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_report, "MIN_SECONDS", 0.5)
    monkeypatch.setattr(gpu_sections, "measure_training", lambda *args: time.sleep(60))
    rows = {row["section"]: row for row in run_report(tmp_path, monkeypatch, "--minutes", "0.02")}
    assert rows["training"]["note"].startswith("TimeoutError: cut off after")
    assert rows["runs"]["what"] == "not run" and rows["runs"]["note"] == "no time left"
    assert rows["all"]["value"] < 10


def test_adapters_that_differ_are_told_with_the_largest_difference(tmp_path):
    for name, weights in {"one": [1.0, -3.0], "other": [1.0, -2.5]}.items():
        path = tmp_path / name / gpu_sections.ADAPTER
        path.parent.mkdir(parents=True)
        save_file({"lora_A": torch.tensor(weights)}, path)
    value, _, note = gpu_sections.compare_adapters(tmp_path / "one", tmp_path / "other", "tiny base")
    assert value == "different"
    assert note == "tiny base; largest difference 5.00e-01, largest weight 3.00e+00"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_step_that_processes_share_is_measured(monkeypatch, capsys):
    """With one process: two are the same code, and take as long again to start."""
    monkeypatch.setattr(sys, "argv", ["processes.py", "--processes", "1", "--films", "8", "--steps", "1"])
    processes.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["processes"] == 1 and figures["images_per_s"] > 0
