"""What tensors take of memory, measured: of a model, and at the worst moment of a step."""

from torch.profiler import ProfilerActivity, profile

from explainmyxray.model.decoded_weights import DecodedLinear4bit


def held(model) -> int:
    """Bytes of all weights, each once, with the constants of the 4-bit ones and what is held decoded."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state:
            tensors += [state.absmax, state.state2.absmax]
        if isinstance(module, DecodedLinear4bit):
            tensors.append(module.decoded)
    bytes_of_storage = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        bytes_of_storage[storage._cdata] = storage.nbytes()
    return sum(bytes_of_storage.values())


def peak(step) -> int:
    """The most bytes that tensors made in `step` hold at once, on a CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = []
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            changes.append((event.start_ns(), event.nbytes()))
    now = most = 0
    for _, change in sorted(changes):  # in the order of time; what is freed has a negative size
        now += change
        most = max(most, now)
    return most
