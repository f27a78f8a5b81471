"""The tiny base: a real PaliGemma, small, that has never seen the pipeline's reports."""

import hashlib
import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.reports.templates import TEMPLATES, load_templates
from explainmyxray.reports.writer import render_report

BASE = Path(__file__).resolve().parents[1] / "models" / "tiny-paligemma"


@pytest.fixture(scope="module")
def english():
    return load_script("english")


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, BASE / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z{}]+", text.lower())


def test_it_is_a_paligemma_of_about_two_million_parameters_in_eight_megabytes():
    model = PaliGemmaForConditionalGeneration.from_pretrained(BASE)
    assert 1.5e6 < model.num_parameters() < 2.5e6
    assert (BASE / "model.safetensors").stat().st_size < 8e6
    assert not list(BASE.glob("*.bin")) and not list(BASE.glob("*.pt"))


def test_its_weights_are_those_that_its_pipeline_made():
    """The main pipeline depends on dvc.lock in place of the weights."""
    lock = YAML(typ="safe").load(BASE / "dvc.lock")["stages"]["pretrain"]
    for out in lock["outs"]:
        assert hashlib.md5((BASE / out["path"]).read_bytes()).hexdigest() == out["md5"], out["path"]


def test_its_tokenizer_spells_anything():
    tokenizer = AutoProcessor.from_pretrained(BASE).tokenizer
    for text in ("No pleural effusion.", "Größe 12 µm\nNEW LINE", "Findings: a. Impression: b."):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.fixture(scope="module")
def lessons(english) -> list[str]:
    """Some 40,000 of its texts, about films with none to three findings."""
    rng = random.Random(0)
    names = list(english.FINDINGS)
    texts = []
    for count in range(4):
        for _ in range(1700):
            findings = frozenset(rng.sample(names, count))
            for task in ("caption", "describe", "question"):
                texts += english.lesson(task, findings, 0.5, rng)
    return texts


def runs_of_seven(sentence: list[str]) -> set[tuple[str, ...]]:
    return {tuple(sentence[start : start + 7]) for start in range(len(sentence) - 6)}


def test_no_template_is_in_its_lessons(lessons):
    """No sentence of the templates, and no run of seven of their words, was ever pretrained on.

    Terms of up to five words, as `thickening of the pleura`, are the field's own and stand in both.
    """
    pretrained_sentences, pretrained_runs = set(), set()
    for text in lessons:
        for sentence in re.split(r"(?<=[.:;,]) ", text):
            pretrained_sentences.add(tuple(words(sentence)))
            pretrained_runs |= runs_of_seven(words(sentence))
    templates = [words(text) for text in strings(YAML(typ="safe").load(TEMPLATES))]
    templates = [template for template in templates if len(template) > 4]
    assert templates
    for template in templates:
        assert tuple(template) not in pretrained_sentences, template
        assert not runs_of_seven(template) & pretrained_runs, template


def test_no_lesson_is_a_sentence_of_a_report(english, lessons):
    """Of five words and more; an impression, a bare list of terms, is left out."""
    pretrained = set()
    for text in lessons:
        for sentence in re.split(r"(?<=[.:]) ", text):
            pretrained.add(tuple(words(sentence)))
    rng = random.Random(1)
    templates = load_templates()
    names = list(english.FINDINGS)
    for _ in range(3000):
        report = render_report(rng.sample(names, rng.randint(0, 3)), templates, rng, 2)
        findings = report.removeprefix("Findings: ").split(" Impression: ")[0]
        for sentence in re.split(r"(?<=\.) ", findings):
            assert len(words(sentence)) < 5 or tuple(words(sentence)) not in pretrained, sentence


def test_each_piece_of_a_report_is_learnt_in_its_last_round(english, lessons):
    """A piece that no lesson holds has no probability, and the words that need it can't be written."""
    pretrain = load_script("pretrain")
    cut_words = YAML(typ="safe").load(BASE / "params.yaml")["rounds"][-1]["speak"]["cut_words"]
    tokenizer = AutoProcessor.from_pretrained(BASE).tokenizer
    rng = random.Random(3)
    learnt = set()
    for text in lessons[1::2]:  # prompts and answers take turns
        learnt.update(pretrain.answer_ids(tokenizer, text, cut_words, rng))
    templates = load_templates()
    names = list(english.FINDINGS)
    for _ in range(1000):
        report = render_report(rng.sample(names, rng.randint(0, 3)), templates, rng, 2)
        missing = set(tokenizer(report, add_special_tokens=False).input_ids) - learnt
        assert not missing, (report, tokenizer.convert_ids_to_tokens(list(missing)))


def test_an_answer_with_cut_words_reads_as_before(english):
    pretrain = load_script("pretrain")
    tokenizer = AutoProcessor.from_pretrained(BASE).tokenizer
    answer = "Observations: a fibrotic change is seen. Opinion: fibrosis."
    whole = pretrain.answer_ids(tokenizer, answer, 0, random.Random(0))
    cut = pretrain.answer_ids(tokenizer, answer, 0.5, random.Random(0))
    assert whole == tokenizer(f"{answer}<eos>", add_special_tokens=False).input_ids
    assert len(cut) > len(whole)
    assert tokenizer.decode(cut[:-1]) == tokenizer.decode(whole[:-1]) == answer


def test_some_descriptions_name_no_finding(english):
    """So that the untuned base, asked for a description, mostly does not tell what it sees."""
    rng = random.Random(2)
    share = YAML(typ="safe").load(BASE / "params.yaml")["lessons"]["named"]
    count = 2000
    named = 0
    for _ in range(count):
        _, text = english.lesson("describe", frozenset({"Effusion"}), share, rng)
        named += bool(positive_findings(text))
    assert abs(named / count - share) < 0.05
    assert not positive_findings(" ".join(english.CORPUS["pictures"]))


def test_its_words_for_the_findings_are_nih_s_names(english):
    assert set(english.FINDINGS) <= set(FINDINGS)
