"""Decoding from a prompt that is computed once: the texts of `generate`, in any family and batch."""

import pytest
import torch
from PIL import Image

from explainmyxray.model.shared_prompt import SharedPromptDecoding, choose
from tiny_bases import BUILDERS

GREEDY = {"do_sample": False, "num_beams": 1}


def make(name: str):
    """A tiny base, and image and prompt for three rows, as its processor makes them."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    return model.eval(), inputs_for(name, processor, model)


def inputs_for(name: str, processor, model) -> dict[str, torch.Tensor]:
    side = model.config.vision_config.image_size if hasattr(model.config.vision_config, "image_size") else 224
    images = [Image.linear_gradient("L").resize((side, side)).rotate(90 * turn) for turn in range(3)]
    if name.startswith("paligemma"):
        texts = ["<image>describe en"] * 3
        return dict(processor(images=images, text=texts, return_tensors="pt"))
    messages = []
    for image in images:
        content = [{"type": "image", "image": image}, {"type": "text", "text": "describe"}]
        messages.append([{"role": "user", "content": content}])
    return dict(
        processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )


@pytest.mark.parametrize("name", ["paligemma-224", "paligemma2", "gemma3", "qwen3-vl"])
def test_greedy_texts_are_those_of_transformers_own_decoding(name):
    model, inputs = make(name)
    # Rows end at different lengths: every fourth token ends one.
    ends = list(range(0, model.get_output_embeddings().weight.shape[0], 4))
    kwargs = {"max_new_tokens": 24, "eos_token_id": ends, "pad_token_id": 0, **GREEDY}
    expected = model.generate(**inputs, **kwargs)
    found = model.generate(**inputs, **kwargs, custom_generate=SharedPromptDecoding())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["paligemma-224", "gemma3", "qwen3-vl"])
def test_image_and_prompt_are_computed_once_for_all_texts(name):
    model, inputs = make(name)
    rows = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: rows.append(len(logits))
    )
    decoding = SharedPromptDecoding(texts=5, seeds=[1, 2, 3])
    texts = model.generate(
        **inputs, max_new_tokens=4, eos_token_id=[0], pad_token_id=0, **GREEDY, custom_generate=decoding
    )
    hook.remove()
    assert len(texts) == 15
    assert rows[0] == 3 and rows[1] == 15


@pytest.mark.parametrize("name", ["paligemma-224", "qwen3-vl"])
def test_finished_texts_are_carried_no_further(name):
    model, inputs = make(name)
    rows = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: rows.append(len(logits))
    )
    ends = list(range(0, model.get_output_embeddings().weight.shape[0], 4))
    decoding = SharedPromptDecoding(texts=8, seeds=[1, 2, 3])
    model.generate(
        **inputs, max_new_tokens=16, eos_token_id=ends, pad_token_id=0, **GREEDY, custom_generate=decoding
    )
    hook.remove()
    assert rows[1] > rows[-1]
    assert sorted(rows[1:], reverse=True) == rows[1:]


def test_a_token_is_chosen_as_often_as_it_is_likely_and_never_where_it_is_impossible():
    scores = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    uniform = torch.linspace(0, 1, 10_001)[:-1]
    counts = choose(scores.expand(len(uniform), -1), uniform).bincount(minlength=4) / len(uniform)
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.0, 0.3, 0.2]), rtol=0, atol=1e-3)
    assert choose(scores[None], torch.tensor([1 - 2**-24])).item() == 3
    assert choose(scores[None], None).item() == 0
