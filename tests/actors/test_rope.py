import pytest
import torch

from shardrank.actors.model.rope import interleaved, rotate


def rotated_by_halves(states, cos, sin):
    """As transformers has it: dimension i turns with i + D / 2."""
    real, imaginary = states.chunk(2, dim=-1)
    return torch.cat((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)


def random_states(tokens=7, heads=3, head_dim=16):
    torch.manual_seed(0)
    angles = torch.randn(tokens, 1, head_dim // 2)
    return torch.randn(tokens, heads, head_dim), angles.cos(), angles.sin()


def test_interleaved_dimensions_turn_as_halves_do():
    states, cos, sin = random_states()
    expected = rotated_by_halves(states, cos, sin)
    order = interleaved(torch.arange(16), 16)
    assert order.tolist()[:4] == [0, 8, 1, 9]
    found = rotate(states[..., order], cos, sin)
    torch.testing.assert_close(found, expected[..., order], atol=1e-6, rtol=1e-6)


def test_weights_in_the_new_order_make_states_in_the_new_order():
    weight, states = torch.randn(3 * 16, 10), torch.randn(5, 10)
    plain = (states @ weight.T).view(5, 3, 16)
    found = (states @ interleaved(weight, 16).T).view(5, 3, 16)
    torch.testing.assert_close(found, plain[..., interleaved(torch.arange(16), 16)])


def test_the_compilers_form_is_the_same(monkeypatch):
    states, cos, sin = random_states()
    expected = rotate(states, cos, sin)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(states, cos, sin), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_turn_in_float32(dtype):
    states, cos, sin = random_states()
    found = rotate(states.to(dtype), cos, sin)
    assert found.dtype == dtype
    torch.testing.assert_close(found, rotate(states.to(dtype).float(), cos, sin).to(dtype))
