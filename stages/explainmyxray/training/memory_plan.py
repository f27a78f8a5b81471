"""What a device's free memory is spent on: stored activations and decoded weights compete for it.

A layer whose activations are stored is not recomputed in the backward pass; 4-bit weights that are held
decoded are not decoded at each product. Neither changes a number. What saves most time a byte is taken first;
what does not fit is recomputed, or stays in 4 bits.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from explainmyxray.errors import UserError
from explainmyxray.model.base import device
from explainmyxray.model.decoded_weights import decode_weights, forget_decoded_weights, four_bit_layers
from explainmyxray.model.free_memory import ALLOCATOR_OVERHEAD, GIB, free_memory
from explainmyxray.settings import Settings
from explainmyxray.training.memory import StepMemory, checkpointable_layers, estimate_step
from explainmyxray.training.processes import count_processes

# Operations of products of matrices in the time that decoding a weight takes, to weigh one against the other.
# On a CPU measured with bitsandbytes 0.50.2; on a GPU calculated for a T4, where decoding moves 4.5 bytes a
# weight.
OPERATIONS_TO_DECODE = {"cpu": 300, "cuda": 560}


@dataclass(frozen=True)
class MemoryPlan:
    """Which layers of a model are not recomputed, the last `num_stored`; which parts hold decoded weights.

    `decoded` are numbers of `StepMemory.parts`. `free` are the bytes that there were to spend.
    """

    estimate: StepMemory
    free: float
    num_stored: int
    decoded: frozenset[int] = frozenset()

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of a step."""
        return self.estimate.peak(self.num_stored, self.decoded)

    @property
    def required(self) -> float:
        """What a step asks of a device."""
        return ALLOCATOR_OVERHEAD * self.peak

    @property
    def fits(self) -> bool:
        validation = ALLOCATOR_OVERHEAD * self.estimate.validation_peak(self.decoded)
        return max(self.required, validation if self.decoded else 0) <= self.free

    @property
    def num_recomputed(self) -> int:
        return len(self.estimate.layers) - self.num_stored

    @property
    def decoded_bytes(self) -> int:
        return sum(self.estimate.parts[number].decoded for number in self.decoded)

    def __str__(self) -> str:
        line = (
            f"a step needs about {self.required / GIB:.2f} of {self.free / GIB:.1f} GiB; "
            f"{self.num_recomputed} of {len(self.estimate.layers)} layers are recomputed"
        )
        decodable = sum(part.decoded for part in self.estimate.parts)
        if decodable:
            line += f", {self.decoded_bytes / decodable:.0%} of the 4-bit weights are held decoded"
        return line

    def figures(self) -> dict[str, float]:
        """For metrics/runtime.json."""
        return {
            "layers": len(self.estimate.layers),
            "recomputed": self.num_recomputed,
            "decoded_gib": self.decoded_bytes / GIB,
            "estimated_gib": self.peak / GIB,
            "free_gib": self.free / GIB,
        }


def plan_memory(
    settings: Settings, prompt_length: int, report_length: int, processes_to_come: int = 1
) -> MemoryPlan:
    """What is stored and decoded on this device; prints it in one line.

    `processes_to_come`: so many will share the free memory, where they have not been started yet.
    Raises UserError where a step is too large for this device, with what would fit.
    """
    estimate = estimate_step(settings, prompt_length, report_length)
    plan = choose_plan(estimate, settings.train.gradient_checkpointing, free_memory() // processes_to_come)
    if not plan.fits:
        raise UserError(
            f"a training step needs about {plan.required / GIB:.1f} GiB and {plan.free / GIB:.1f} are free: "
            f"{_what_fits(settings, prompt_length, report_length, plan.free)}{_alone(settings)}"
        )
    print(plan, flush=True)
    return plan


def choose_plan(
    estimate: StepMemory, gradient_checkpointing: bool | Literal["auto"], free: float
) -> MemoryPlan:
    """All layers but one recomputed (true), none (false), or what `free` bytes ask for (auto).

    The last layer's backward follows its forward at once, so that recomputing it would save nothing.
    """
    if gradient_checkpointing is False:
        return MemoryPlan(estimate, free, num_stored=len(estimate.layers))
    plan = MemoryPlan(estimate, free, num_stored=1)
    if gradient_checkpointing is True:
        return plan
    while True:
        fitting = [(gain, wider) for gain, wider in _wider_plans(plan) if wider.fits]
        if not fitting:
            return plan
        plan = max(fitting, key=lambda each: each[0])[1]


def _wider_plans(plan: MemoryPlan) -> list[tuple[float, MemoryPlan]]:
    """Each plan that stores or decodes one thing more, with the operations that it saves a byte."""
    to_decode = OPERATIONS_TO_DECODE[device().type]
    first_stored = plan.num_recomputed
    wider = []

    # 1) The layer before the first stored one: its forward is not run again.
    if first_stored > 0:
        layer = plan.estimate.layers[first_stored - 1]
        saved = layer.operations
        if first_stored - 1 not in plan.decoded:
            saved += to_decode * layer.num_decodable
        gain = saved / max(layer.saved - layer.input, 1)
        wider.append((gain, replace(plan, num_stored=plan.num_stored + 1)))

    # 2) The weights of a part, decoded at each product: forward, again where it is recomputed, and backward.
    for number, part in enumerate(plan.estimate.parts):
        if number in plan.decoded or not part.num_decodable:
            continue
        num_products = 1
        if part.in_backward:
            num_products = 3 if number < first_stored else 2
        gain = num_products * to_decode * part.num_decodable / part.decoded
        wider.append((gain, replace(plan, decoded=plan.decoded | {number})))
    return wider


def _what_fits(settings: Settings, prompt_length: int, report_length: int, free: int) -> str:
    """The parameters of the largest batch that fits `free` bytes with 4-bit weights and checkpointing."""
    images = settings.train.gradient_accumulation_steps * settings.train.per_device_train_batch_size
    four_bit = settings.quantization.model_copy(update={"load_in_4bit": True})
    batch_size = settings.train.per_device_train_batch_size
    while batch_size:
        train = settings.train.model_copy(update={"per_device_train_batch_size": batch_size})
        smaller = settings.model_copy(update={"quantization": four_bit, "train": train})
        required = ALLOCATOR_OVERHEAD * estimate_step(smaller, prompt_length, report_length).peak(
            num_stored=1
        )
        if required <= free:
            return (
                f"train.per_device_train_batch_size={batch_size}, "
                f"train.gradient_accumulation_steps={images // batch_size}, "
                "train.gradient_checkpointing=auto and quantization.load_in_4bit=true "
                f"need {required / GIB:.1f}"
            )
        batch_size //= 2
    return "no setting makes this model fit: take a larger GPU, or a smaller model.id"


def _alone(settings: Settings) -> str:
    """What else there is where processes share a CPU's memory."""
    num_processes = count_processes(settings.train)
    if num_processes == 1 or device().type != "cpu":
        return ""
    return f"; train.num_processes=1 has {num_processes} times the memory"


def apply_plan(model, plan: MemoryPlan) -> None:
    """Have a PEFT `model` recompute what the `plan` does not store, and hold decoded what it decodes."""
    enable_gradient_checkpointing(model, plan.num_stored)
    layers = checkpointable_layers(model)
    forget_decoded_weights(model)
    in_layers = set()
    for number, layer in enumerate(layers):
        in_layers.update(four_bit_layers(layer))
        if number in plan.decoded:
            decode_weights(layer)
    if len(layers) in plan.decoded:
        for linear in four_bit_layers(model):
            if linear not in in_layers:
                decode_weights(linear)


def enable_gradient_checkpointing(model, num_stored: int) -> None:
    """Gradient checkpointing for all layers of a PEFT `model` but the last `num_stored`."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # PEFT has every sub-model's input require a gradient: a frozen vision tower would get a backward for
    # nothing.
    model.get_base_model().disable_input_require_grads()
    layers: list[nn.Module] = checkpointable_layers(model)
    for layer in layers[len(layers) - num_stored :]:
        layer.gradient_checkpointing = False
