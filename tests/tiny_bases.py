"""Tiny bases of every family: random weights, the true
configuration's kind, true special tokens and chat templates.

No weights of the true models are at hand in a test. What a family does with prompt, image, mask and loss does
not hang on them: it is decided by configuration, processor and template, and these are the true ones, made
small.
"""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
)

from explainmyxray.reports.templates import load_templates
from explainmyxray.reports.writer import render_report

NAMES = ("paligemma-224", "paligemma-448", "paligemma2", "gemma3", "qwen3-vl")

# As in google/gemma-3-4b-it, without the branch for tools that it does not have.
GEMMA3_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# As in Qwen/Qwen3-VL-2B-Instruct, without the branches for tools and video.
QWEN3_VL_TEMPLATE = """{%- for message in messages -%}
    {{ '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "max_position_embeddings": 2048,
}


def save_tiny_base(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the tiny base `name`, one of `BUILDERS`, to `folder`, as a hub repository would hold it."""
    torch.manual_seed(seed)
    model, processor = BUILDERS[name]()
    model.eval().save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


def report_texts(count: int = 400) -> list[str]:
    """Synthetic reports to train a tokenizer on."""
    rng, templates = random.Random(0), load_templates()
    findings = sorted(templates.findings)
    return [render_report(rng.sample(findings, rng.randint(0, 3)), templates, rng, 2) for _ in range(count)]


def gemma_tokenizer(special: list[str], **names) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE as Gemma's: blanks are ▁, nothing is split before, <bos> is put in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    always = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *special, *byte_tokens, "\n", "\n\n"]
    trainer = trainers.BpeTrainer(vocab_size=len(always) + 400, special_tokens=always, show_progress=False)
    tokenizer.train_from_iterator([*report_texts(), "describe en caption answer"], trainer)
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        **{"eos_token": "<eos>", **names},
    )


def paligemma(image_size: int, model_type: str):
    patch = image_size // 4
    locations = [f"<loc{number:04d}>" for number in range(8)] + [f"<seg{number:03d}>" for number in range(8)]
    tokenizer = gemma_tokenizer(["<image>", *locations])
    image_processor = SiglipImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor, tokenizer)
    vocabulary = len(processor.tokenizer)
    text = {**TEXT, "model_type": model_type, "vocab_size": vocabulary}
    if model_type == "gemma2":
        text |= {"query_pre_attn_scalar": 16, "sliding_window": 4096}
    config = PaliGemmaConfig(
        vision_config={
            **VISION,
            "model_type": "siglip_vision_model",
            "image_size": image_size,
            "patch_size": patch,
            "num_image_tokens": 16,
            "vision_use_head": False,
        },
        text_config=text,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vocab_size=vocabulary,
        projection_dim=32,
        hidden_size=32,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def gemma3():
    """As MedGemma-4B configures Gemma 3: SigLIP at one size,
    patches pooled to a square of image tokens, chat template.
    """
    special = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer = gemma_tokenizer(
        [*special, *(f"<unused{number}>" for number in range(4))],
        eos_token="<end_of_turn>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    tokenizer.chat_template = GEMMA3_TEMPLATE
    image_processor = Gemma3ImageProcessor(
        size={"height": 224, "width": 224}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = Gemma3Processor(
        image_processor, tokenizer, chat_template=GEMMA3_TEMPLATE, image_seq_length=16
    )
    ids = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "query_pre_attn_scalar": 16,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**VISION, "image_size": 224, "patch_size": 28, "vision_use_head": False},
        mm_tokens_per_image=16,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[ids("<eos>"), ids("<end_of_turn>")],
    )
    model = Gemma3ForConditionalGeneration(config)
    # Zero where nothing has been trained: a base that sees nothing.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def qwen3_vl():
    """Another architecture: byte-level BPE, no <bos>, image tokens
    counted from the image's size, rotary positions in 3D.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 600,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator([*report_texts(), "user assistant describe"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = QWEN3_VL_TEMPLATE
    size = {"shortest_edge": 224 * 224, "longest_edge": 224 * 224}
    image_processor = Qwen2VLImageProcessor(
        patch_size=28,
        merge_size=2,
        temporal_patch_size=2,
        size=size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    video_processor = Qwen3VLVideoProcessor(patch_size=28, merge_size=2, temporal_patch_size=2)
    processor = Qwen3VLProcessor(image_processor, tokenizer, video_processor, chat_template=QWEN3_VL_TEMPLATE)
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "depth": 2,
            "out_hidden_size": 32,
            "patch_size": 28,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def llava():
    """As LLaVA 1.5 without a chat template: CLIP's tower, whose class token is left out, and Llama."""
    tokenizer = gemma_tokenizer(["<image>", "USER", "ASSISTANT"])
    image_processor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=56,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model", "image_size": 224, "patch_size": 56},
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config), processor


BUILDERS = {
    "paligemma-224": lambda: paligemma(224, "gemma"),
    "paligemma-448": lambda: paligemma(448, "gemma"),
    "paligemma2": lambda: paligemma(224, "gemma2"),
    "gemma3": gemma3,
    "qwen3-vl": qwen3_vl,
    "llava": llava,
}
