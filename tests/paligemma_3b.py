"""The shape of google/paligemma-3b-pt-224, without its weights."""

from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig


def shape(image_token: int = 257152) -> PaliGemmaConfig:
    return PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
            projection_dim=2048,
            vision_use_head=False,
        ).to_dict(),
        text_config=GemmaConfig(
            hidden_size=2048,
            intermediate_size=16384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
            vocab_size=257216,
        ).to_dict(),
        projection_dim=2048,
        image_token_index=image_token,
    )
