"""What free memory is spent on where nothing is trained: beside what generating takes, on decoded weights.

The language model's are taken first: they are used for every token, the vision tower's once an image.
"""

from dataclasses import dataclass

from explainmyxray.model.decoded_weights import decode_weights, decoded_size, four_bit_layers
from explainmyxray.model.families import family_of
from explainmyxray.model.families.family import ReportProcessor
from explainmyxray.model.free_memory import ALLOCATOR_OVERHEAD, GIB, free_memory

# Of a logit at worst: float32 logits, masked, probabilities, cumulated in float64; the cutoff's mask.
LOGIT_BYTES = 29
FLOAT32 = 4  # bytes: products may be in 16 bits, what is between them need not be


@dataclass(frozen=True)
class InferencePlan:
    """Bytes: what generating takes beside the weights, what was free for it, how much of what is decoded.

    num_processes: those that generate at once, of whose memory `working` is the sum.
    """

    working: int
    free: float
    decoded: int
    decodable: int
    num_processes: int = 1

    def __str__(self) -> str:
        required = ALLOCATOR_OVERHEAD * (self.working + self.decoded)
        line = f"generating needs about {required / GIB:.2f} of {self.free / GIB:.1f} GiB beside the model"
        if self.num_processes > 1:
            line += f", in {self.num_processes} processes"
        if self.decodable:
            line += f"; {self.decoded / self.decodable:.0%} of the 4-bit weights are held decoded"
        return line

    def figures(self) -> dict[str, float]:
        """For metrics/runtime.json."""
        return {
            "processes": self.num_processes,
            "decoded_gib": self.decoded / GIB,
            "estimated_gib": self.working / GIB,
            "free_gib": self.free / GIB,
        }


def hold_decoded_weights(
    model,
    processor: ReportProcessor,
    batch_size: int,
    num_texts: int,
    max_new_tokens: int,
    max_processes: int = 1,
) -> InferencePlan:
    """Have a loaded PEFT `model` hold so many of its 4-bit weights decoded as fit beside what it takes to
    generate `num_texts` texts at once for `batch_size` images; prints the plan in one line.

    Processes come first, `max_processes` where they fit: they save more time than decoded weights, which they
    share.
    """
    working = working_memory(model, processor, batch_size, num_texts, max_new_tokens)
    free = free_memory()
    num_processes = min(max_processes, max(1, int(free / (ALLOCATOR_OVERHEAD * working))))
    working *= num_processes
    layers = four_bit_layers(model)
    decoded = 0
    for layer in reversed(layers):
        size = decoded_size(layer)
        if ALLOCATOR_OVERHEAD * (working + decoded + size) <= free:
            decode_weights(layer)
            decoded += size
    decodable = sum(decoded_size(layer) for layer in layers)
    plan = InferencePlan(working, free, decoded, decodable, num_processes)
    print(plan, flush=True)
    return plan


def working_memory(
    model, processor: ReportProcessor, batch_size: int, num_texts: int, max_new_tokens: int
) -> int:
    """Bytes that generating and explaining take beside the weights, by arithmetic; rather too many."""
    family = family_of(model)
    text, vision = family.config.get_text_config(), family.config.vision_config
    num_patches = (processor.image_size // family.patch_size) ** 2
    length = processor.prompt_length + max_new_tokens

    # Keys and values of all texts, twice where finished ones are taken out.
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * FLOAT32
    cache = 2 * num_texts * length * token

    # Beside them the largest of: the logits; a layer's tensors, for all patches or all tokens of the prompt;
    # all that the backward of a saliency map needs, of one image.
    logits = num_texts * text.vocab_size * LOGIT_BYTES
    of_patch = FLOAT32 * (4 * vision.hidden_size + 3 * vision.intermediate_size)
    of_token = FLOAT32 * (4 * text.hidden_size + 3 * text.intermediate_size)
    tower = batch_size * num_patches * of_patch
    prompt = batch_size * processor.prompt_length * of_token
    backward = 2 * length * of_token * text.num_hidden_layers
    return cache + max(logits, tower, prompt, backward)
