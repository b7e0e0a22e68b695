import pytest
import torch

from shardrank.actors import Reranker
from shardrank.actors.model.linear import (
    linear,
    pack_weight,
    preparation,
    quantize_rows,
    supports_fp8,
)
from tests.support.engine import TINY, tiny_reranker

DOCUMENTS = ["a red bicycle", "An essay on the tides. " * 20, "", {"image": "media/sq_64x64.png"}]


CPU = torch.device("cpu")


def random_layer(rows=17, inputs=48, outputs=80):
    torch.manual_seed(0)
    states, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5
    return states, weight, torch.randn(outputs), torch.randn(rows, outputs)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    "behind",
    [{}, *({"activation": name} for name in ("silu", "gelu", "gelu_tanh")), {"times"}, {"plus"}],
    ids=str,
)
def test_packed_weights_give_the_plain_product_with_all_that_follows_it(behind, has_bias):
    states, weight, bias, other = random_layer()
    options = behind if isinstance(behind, dict) else dict.fromkeys(behind, other)
    bias = bias if has_bias else None
    with torch.inference_mode():
        plain = linear(states, weight, bias, **options)
        packed = linear(states, pack_weight(weight), bias, **options)
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 500, 5_000])
def test_a_packed_weight_serves_any_number_of_rows(rows):
    states, weight, _, _ = random_layer(rows)
    with torch.inference_mode():
        packed = linear(states, pack_weight(weight))
    torch.testing.assert_close(packed, states @ weight.T, atol=1e-5, rtol=1e-5)


def test_what_follows_a_product_is_what_its_name_says():
    states, weight, bias, other = random_layer()
    product = states @ weight.T + bias
    assert torch.allclose(linear(states, weight, bias, plus=other), product + other, atol=1e-5)
    assert torch.allclose(linear(states, weight, bias, times=other), product * other, atol=1e-5)
    silu = linear(states, weight, bias, activation="silu")
    assert torch.allclose(silu, product * product.sigmoid(), atol=1e-5)


def test_weights_stay_plain_for_a_gpu_and_for_the_compiler():
    weight = torch.randn(4, 4)
    assert preparation(torch.device("cuda"), torch.bfloat16)(weight) is weight
    assert preparation(CPU, torch.float32, is_compiled=True)(weight) is weight
    assert preparation(CPU, torch.float16)(weight) is weight


def test_fp8_rows_are_within_its_relative_step():
    torch.manual_seed(0)
    rows = torch.randn(20, 64) * torch.logspace(-6, 6, 20)[:, None]
    values, scale, _ = quantize_rows(rows)
    # e4m3 has 3 bits behind the point; below 2^-6 of the scale it is as fine as there.
    step = rows.abs() / 16 + scale * 2**-10
    assert ((values.float() * scale - rows).abs() <= step).all()


def test_a_row_of_zeros_stays_zero():
    values, scale, _ = quantize_rows(torch.zeros(1, 8))
    assert (values.float() * scale == 0).all()


def test_an_fp8_product_is_near_the_exact_one():
    torch.manual_seed(0)
    states, weight = torch.randn(50, 256), torch.randn(30, 256)
    exact = linear(states, weight)
    error = (linear(states, quantize_rows(weight)) - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.05


def test_fp8_moves_scores_a_little_and_is_off_unless_asked_for():
    exact = tiny_reranker(empty="official").score("bicycle", DOCUMENTS)
    rounded = tiny_reranker(quantization="fp8", empty="official").score("bicycle", DOCUMENTS)
    differences = [abs(a - b) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(differences) < 0.2
    assert tiny_reranker().config.quantization == "none"


def test_an_unknown_quantization_is_refused():
    with pytest.raises(ValueError, match="quantization must be one of .*got 'int4'"):
        Reranker(str(TINY), quantization="int4")


def test_a_cpu_imitates_fp8():
    assert supports_fp8(torch.device("cpu"))
