"""What tensors take of memory, measured: of a model, and at the worst moment of a step."""

from torch.profiler import ProfilerActivity, profile


def held(model) -> int:
    """Bytes of all weights, each once, with the constants of the 4-bit ones."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if state := getattr(getattr(module, "weight", None), "quant_state", None):
            tensors += [state.absmax, state.state2.absmax]
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def peak(step) -> int:
    """The most bytes that tensors made in `step` hold at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = most = 0
    for _, size in sorted(
        (e.start_ns(), e.nbytes())
        for e in profiler.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ):
        now += size
        most = max(most, now)
    return most
