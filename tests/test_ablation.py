"""The ablation: every variant is a valid run, and the table says what the seeds' predictions say."""

import importlib.util

import pytest
from ruamel.yaml import YAML

from conftest import ROOT, lay_over
from explainmyxray.pictures.ablation_plot import plot_ablation
from explainmyxray.settings import Settings
from test_comparison import predictions


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("stage_ablation", ROOT / "stages/ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_is_a_valid_run_of_32_images_a_step(ablation):
    yaml = YAML(typ="safe")
    plan = yaml.load(ablation.PLAN)
    names = set()
    for variant, changes in plan["variants"].items():
        params = yaml.load(ROOT / "params.yaml")
        for key, value in (plan["common"] | changes).items():
            section, name = key.split(".")
            assert name in params[section]
            lay_over(params, {section: {name: yaml.load(value) if isinstance(value, str) else value}})
        train = Settings.model_validate(params).train
        assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 32
        names |= {ablation.experiment(variant, seed) for seed in plan["seeds"]}
    assert len(names) == len(plan["variants"]) * len(plan["seeds"]) and not any(" " in name for name in names)


@pytest.mark.slow
def test_the_table_tells_more_than_chance_from_chance(ablation, monkeypatch, tmp_path):
    skill = {"first": 0.7, "same": 0.7, "better": 0.95}
    base = predictions(0.2, 7)["generated"]
    made = {
        ablation.experiment(variant, seed): predictions(right, 10 * place + seed).assign(untuned=base)
        for place, (variant, right) in enumerate(skill.items())
        for seed in (1, 2, 3)
    }
    monkeypatch.setattr(ablation, "load_predictions", made.get)
    monkeypatch.chdir(ROOT)  # params.yaml, for the bootstrap's seed
    table = ablation.summarize({"variants": dict.fromkeys(skill, {}), "seeds": [1, 2, 3]}, samples=1000)
    f1 = table[table["figure"] == "micro-F1"].set_index("variant")
    assert (
        f1["difference"]["first"] == 0
        and f1["low"]["same"] < 0 < f1["high"]["same"]
        and f1["low"]["better"] > 0.1
    )
    variants = f1.loc[list(skill)]
    assert (variants["least"] < variants["value"]).all() and (variants["value"] < variants["most"]).all()
    assert list(f1.index)[-1] == "untuned base" and f1["high"]["untuned base"] < -0.1
    plot_ablation(table, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").stat().st_size > 5_000


def test_a_variant_without_a_run_is_named(ablation, monkeypatch):
    from explainmyxray.errors import UserError

    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="ablation-never-run-1 is no revision here and no experiment"):
        ablation.summarize({"variants": {"never run": {}}, "seeds": [1]}, samples=10)
