import pytest
import torch
from engine import TINY, tiny_reranker

from actors import Reranker
from actors.linear import linear, quantize_rows, supports_fp8

DOCUMENTS = ["a red bicycle", "An essay on the tides. " * 20, "", {"image": "media/sq_64x64.png"}]


def test_fp8_rows_are_within_its_relative_step():
    torch.manual_seed(0)
    rows = torch.randn(20, 64) * torch.logspace(-6, 6, 20)[:, None]
    values, scale = quantize_rows(rows)
    # e4m3 has 3 bits behind the point; below 2^-6 of the scale it is as fine as there.
    step = rows.abs() / 16 + scale * 2**-10
    assert ((values.float() * scale - rows).abs() <= step).all()


def test_a_row_of_zeros_stays_zero():
    values, scale = quantize_rows(torch.zeros(1, 8))
    assert (values.float() * scale == 0).all()


def test_an_fp8_product_is_near_the_exact_one():
    torch.manual_seed(0)
    states, weight = torch.randn(50, 256), torch.randn(30, 256)
    exact = linear(states, weight)
    error = (linear(states, quantize_rows(weight)) - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.05


def test_fp8_moves_scores_a_little_and_is_off_unless_asked_for():
    exact = tiny_reranker().score("bicycle", DOCUMENTS)
    rounded = tiny_reranker(quantization="fp8").score("bicycle", DOCUMENTS)
    differences = [abs(a - b) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(differences) < 0.2
    assert tiny_reranker().config.quantization == "none"


def test_an_unknown_quantization_is_refused():
    with pytest.raises(ValueError, match="quantization must be one of .*got 'int4'"):
        Reranker(str(TINY), quantization="int4")


def test_a_cpu_imitates_fp8():
    assert supports_fp8(torch.device("cpu"))
