"""Generated reports hold words alone, and sampled ones are the same whatever the batch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import ROOT
from explainmyxray.errors import UserError
from explainmyxray.generation import (
    consensus,
    generate,
    generate_batch,
    generate_texts,
    image_features,
    no_words,
    sample,
    sample_reports,
)
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.settings import load_settings
from explainmyxray.sources import phantom

SETTINGS = load_settings(ROOT / "params.yaml")
EOS = 1


@pytest.fixture(scope="module")
def tiny():
    base = SETTINGS.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
    return add_lora(load_base(base, SETTINGS.quantization), SETTINGS.lora).eval(), load_processor(base)


@pytest.fixture(scope="module")
def images():
    return [film.read() for film in phantom.sample(phantom.PIPELINE, 8, 3, 224)]


def test_no_piece_of_a_report_is_suppressed_and_each_that_is_none_is(tiny, small_data):
    tokenizer = tiny[1].tokenizer
    suppressed = no_words(tokenizer, len(tokenizer) + 3, frozenset({EOS}))
    reports = pd.read_csv(Path(small_data) / "data/reports.csv")["report"]
    used = sorted(
        {token for report in reports for token in tokenizer(report, add_special_tokens=False).input_ids}
    )
    assert len(used) > 50
    assert not suppressed[used].any() and not suppressed[EOS]
    pieces = ["<loc0597>", "<seg039>", "<image>", "<bos>", "<pad>", "<mask>", "<unk>"]
    assert suppressed[tokenizer.convert_tokens_to_ids(pieces)].all()
    assert suppressed[-3:].all()  # rows of the output layer that have no piece
    assert not suppressed[tokenizer.convert_tokens_to_ids("<0xC2>")]  # a byte of a character without a piece


@pytest.mark.parametrize(
    "generate_kwargs",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 2},
        {"do_sample": True, "num_return_sequences": 4, "top_k": 0},
    ],
    ids=["greedy", "beam", "sampled"],
)
def test_a_piece_that_is_no_word_is_not_written_however_likely(tiny, images, generate_kwargs):
    model, processor = tiny
    location = processor.tokenizer.convert_tokens_to_ids("<loc0597>")

    def favour(module, args, logits):
        logits[..., location] += 1e4
        return logits

    hook = model.get_output_embeddings().register_forward_hook(favour)
    try:
        texts = generate_texts(model, processor, images[:1], max_new_tokens=8, **generate_kwargs)
    finally:
        hook.remove()
    assert texts and all(texts)
    assert not any("<" in text for text in texts)


def test_sampled_reports_and_their_consensus_are_the_same_whatever_the_batch(tiny, images):
    short = SETTINGS.evaluate.model_copy(
        update={"decoding": "consensus", "samples": 4, "max_new_tokens": 8, "batch_size": 12}
    )
    together = sample_reports(*tiny, images, short, 4, seed=42)
    alone = [sample_reports(*tiny, [image], short, 4, seed=42)[0] for image in reversed(images)]
    assert together == alone[::-1]
    assert len({text for texts in together for text in texts}) > 6
    assert together != sample_reports(*tiny, images, short, 4, seed=43)
    assert generate_batch(*tiny, images, short, seed=42) == [consensus(texts) for texts in together]


def test_several_processes_write_what_one_writes(tiny, images, tmp_path):
    names = [f"{number}.png" for number in range(len(images))]
    for name, image in zip(names, images):
        image.convert("L").save(tmp_path / name)
    short = SETTINGS.evaluate.model_copy(update={"samples": 4, "max_new_tokens": 8, "batch_size": 2})
    greedy = short.model_copy(update={"decoding": "greedy"})
    expected = sample(*tiny, tmp_path, names, short), generate(*tiny, tmp_path, names, greedy)
    features = image_features(*tiny, tmp_path, names, 2)
    random_state = torch.random.get_rng_state()

    # Forked once OpenMP's threads have run, which do not come along.
    torch.set_num_threads(2)
    try:
        generate(*tiny, tmp_path, names, greedy)
        for several in (2, 5):  # of processes, for two batches
            assert sample(*tiny, tmp_path, names, short, num_processes=several) == expected[0]
            assert generate(*tiny, tmp_path, names, greedy, num_processes=several) == expected[1]
            assert torch.equal(image_features(*tiny, tmp_path, names, 2, num_processes=several), features)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.random.get_rng_state(), random_state)  # what is drawn later is the same, too

    (tmp_path / names[2]).unlink()
    with pytest.raises(UserError) as raised:
        generate(*tiny, tmp_path, names, greedy, num_processes=2)
    assert "2.png cannot be read (FileNotFoundError)" in str(raised.value).splitlines()[-1]


KILLED = """
import contextlib, os, sys
from pathlib import Path
from explainmyxray.model.image_batches import map_batches

parent = os.getpid()

def kill_parent(batch):
    with contextlib.suppress(ProcessLookupError):
        os.kill(parent, 9)
    return "more than a pipe holds" * 100_000

map_batches(kill_parent, Path(sys.argv[1]), sys.argv[2:], 1, "", num_processes=2)
"""


def test_processes_end_with_the_one_that_started_them_even_if_it_is_killed(images, tmp_path):
    names = [f"{number}.png" for number in range(8)]
    for name in names:
        images[0].convert("L").save(tmp_path / name)
    # `run` waits until each process that holds the output has ended.
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, *names],
        env={**os.environ, "PYTHONPATH": str(ROOT / "stages")},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL


def test_unlikely_tokens_are_never_sampled(tiny, images):
    """Where only a token of nearly all the probability may be drawn, what is sampled is the greedy report."""
    greedy = SETTINGS.evaluate.model_copy(update={"decoding": "greedy", "max_new_tokens": 8})
    certain = greedy.model_copy(update={"epsilon_cutoff": 0.999})
    expected = generate_batch(*tiny, images, greedy)
    assert sample_reports(*tiny, images, certain, 2, seed=42) == [[text, text] for text in expected]
    # Without a cutoff, texts at the same seed differ: some hold tokens that are less likely than 0.02.
    anything = greedy.model_copy(update={"epsilon_cutoff": 0.0})
    assert sample_reports(*tiny, images, anything, 8, 42) != sample_reports(*tiny, images, greedy, 8, 42)


def test_the_consensus_is_the_report_that_most_others_agree_with():
    mass = "Findings: A mass is seen. Impression: Lung mass."
    reworded = "Findings: There is a mass. Impression: Mass."
    normal = "Findings: The lungs are clear. Impression: No disease."
    assert (
        consensus([normal, reworded, mass, mass, normal]) == mass
    )  # three name a mass; two in the same words
    assert consensus([normal]) == normal
    assert consensus([normal, mass, normal]) == normal
