"""How fast and how large: rates, memory, what the device waits for, plans that do not fit."""

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.acceptance.device import Device, Figures, check, logits_of, num_graphs, prepared_sets
from bench.bound.flops import ModelShape
from bench.bound.work import count, flops_of
from shardrank.actors import Reranker
from shardrank.actors.model.linear import supports_fp8
from shardrank.actors.prepared import PreparedSet


def ceilings(device: Device) -> Figures:
    """The rate of one large matrix product, and of a copy: what MFU is a share of."""
    side, values = (8_192, 1 << 31) if device.is_cuda else (256, 1 << 20)
    left, right = (torch.randn(side, side, device=device.device).bfloat16() for _ in range(2))
    source = torch.empty(values, dtype=torch.int8, device=device.device)
    target = torch.empty_like(source)
    product_s = device.seconds(lambda: left @ right, 10, 3)
    copy_s = device.seconds(lambda: target.copy_(source), 10, 3)
    return {
        "flops_per_s": 2 * side**3 / product_s,
        "copied_bytes_per_s": 2 * source.nbytes / copy_s,
    }


def speed(device: Device) -> Figures:
    """Pairs a second, MFU, memory, busy share, synchronisations and launches by plan size."""
    figures: Figures = {}
    before = num_graphs()
    _measure_speed(device, device.warm, "bfloat16", figures)
    figures["compiled_after_the_warm_up"] = num_graphs() - before
    if device.is_cuda and supports_fp8(device.device):
        reranker = device.reranker(quantization="fp8")
        reranker.scorer.warm_up()
        _measure_speed(device, reranker, "fp8", figures, with_pages=False)
    return figures


def _measure_speed(
    device: Device, reranker: Reranker, label: str, figures: Figures, with_pages: bool = True
) -> None:
    scorer, configured = reranker.scorer, reranker.scorer.max_batch_tokens
    ceiling = device.done.get("ceilings", {}).get("flops_per_s")
    shape = ModelShape.of(device.checkpoint)
    limits = (8_192, 16_384, 65_536) if device.is_cuda else (configured,)
    works = {"text": (device.workload("text", 0.7), limits)}
    if with_pages:
        works["pages"] = (device.workload("pages", 0.3), (configured,))
    for name, (work, sizes) in works.items():
        prepared = prepared_sets(reranker, work)
        counted = count(work, device.checkpoint)
        needed = flops_of("needed", counted, shape).total
        for size in sizes:
            scorer.max_batch_tokens = size
            if device.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()

            def run(prepared: list[PreparedSet] = prepared) -> None:
                scorer.vision_cache = scorer.vision_cache.emptied()
                logits_of(reranker, prepared)

            seconds = device.seconds(run, 2, 1)
            peak = torch.cuda.max_memory_allocated() - base
            figures[f"{label} {name}, plans of {size}"] = {
                "pairs_per_s": work.num_pairs / seconds,
                "ms": 1e3 * seconds,
                "mfu": ceiling and needed / seconds / ceiling,
                "peak_bytes_per_token": (
                    peak // min(size, counted.num_distinct_tokens) if device.is_cuda else None
                ),
                "budgeted_bytes_per_token": scorer._model.bytes_per_token,
            }
        scorer.max_batch_tokens = configured
        if device.is_cuda:
            figures[f"{label} {name}, profile"] = _profiled(device, run)


def _profiled(device: Device, run: Callable[[], None]) -> Figures:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        run()
        device.synchronize()
        wall = time.perf_counter() - started
    events = profiler.key_averages()
    kernels = [each for each in events if each.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda each: -each.self_device_time_total)
    return {
        "busy_share": sum(each.self_device_time_total for each in kernels) / 1e6 / wall,
        "synchronizations": {e.key: e.count for e in events if "Synchronize" in e.key},
        "launches": sum(each.count for each in events if "Launch" in each.key),
        "top_kernels_ms": {e.key[:80]: e.self_device_time_total / 1e3 for e in kernels[:12]},
    }


def out_of_memory(device: Device) -> Figures:
    """A plan that does not fit is halved, and no score moves more than bfloat16's own."""
    if not device.is_cuda:
        return {"skipped": "a CPU's memory is not bounded here"}
    reranker = device.warm
    scorer, prepared = reranker.scorer, prepared_sets(reranker, device.workload("text", 0.7))
    configured, scorer.max_batch_tokens = scorer.max_batch_tokens, 65_536
    decoder, sizes = scorer._model.decoder, []
    last_hidden = decoder.last_hidden

    def counted(batch: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(batch.num_tokens)
        return last_hidden(batch, *arguments, **options)

    decoder.last_hidden = counted  # type: ignore[method-assign]
    try:
        expected = logits_of(reranker, prepared)
        num_whole = len(sizes)
        device.empty()
        room = torch.cuda.memory_allocated() + 8_192 * scorer._model.bytes_per_token
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
        found = logits_of(reranker, prepared)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        decoder.last_hidden = last_hidden  # type: ignore[method-assign]
        scorer.max_batch_tokens = configured
    difference = float(abs(found - expected).max())
    check(len(sizes) > 2 * num_whole, f"nothing was halved: {sizes}")
    return {"tokens_of_forwards": sizes[:20], "max_logit_difference": difference}
