"""Winograd's convolution: its matrices by exact arithmetic, its results by the plain one."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.layers import winograd
from meinst_d2.layers.winograd import INPUTS, KERNEL, OUTPUTS, TrainingConv2d, WinogradConvolution


def exactly(matrix: winograd.Matrix) -> np.ndarray:
    return np.array([[Fraction(x).limit_denominator(100) for x in row] for row in matrix])


def test_four_outputs_of_three_taps_take_six_products() -> None:
    """Exactly the correlation, for symbols: the coefficient of every input and tap in every output is 1 or 0."""
    points, taps, outputs = exactly(INPUTS), exactly(KERNEL), exactly(OUTPUTS)
    found = np.einsum("op,pi,pt->oit", outputs, points, taps)
    expected = np.array([[[int(i == o + t) for t in range(3)] for i in range(6)] for o in range(4)])
    assert (found == expected).all()


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    out = F.conv2d(*leaves, padding=1)
    out.backward(grad.double())
    return [out, *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    layout=st.sampled_from((torch.contiguous_format, torch.channels_last)),
    strip_bytes=st.sampled_from((1, 2000, 2**24)),
)
def test_output_and_gradients_are_the_plain_convolutions(
    n: int, channels: tuple[int, int], size: tuple[int, int], layout: torch.memory_format, strip_bytes: int
) -> None:
    torch.manual_seed(n)
    x = torch.randn(n, channels[0], *size).to(memory_format=layout).requires_grad_()
    weight = torch.randn(channels[1], channels[0], 3, 3, requires_grad=True)
    bias = torch.randn(channels[1], requires_grad=True)
    grad = torch.randn(n, channels[1], *size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "STRIP_BYTES", strip_bytes)
        out = WinogradConvolution.apply(x, weight, bias)
        out.backward(grad)
    for found, expected in zip((out, x.grad, weight.grad, bias.grad), reference(x, weight, bias, grad), strict=True):
        assert (found - expected).norm() <= 2e-5 * expected.norm() + 1e-5


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    x, weight, bias = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3, 3, requires_grad=True), torch.zeros(3)
    WinogradConvolution.apply(x, weight, bias).sum().backward()
    assert x.grad is None
    expected = reference(x, weight, bias, torch.ones(1, 3, 9, 9))[2].float()
    torch.testing.assert_close(weight.grad, expected, rtol=2e-5, atol=1e-4)


@pytest.fixture
def small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what goes through Winograd's convolution."""
    seen: list[tuple[int, ...]] = []
    apply = WinogradConvolution.apply

    def remember(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return apply(x, *rest)

    monkeypatch.setattr(WinogradConvolution, "apply", remember)
    return seen


def test_only_training_in_float32_uses_it(small_maps_too: None, calls: list[tuple[int, ...]]) -> None:
    layer, x = TrainingConv2d(2, 3), torch.randn(1, 2, 8, 8)
    layer(x)
    assert calls == [(1, 2, 8, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.double()(x.double())
    layer.float().eval()
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)) and len(calls) == 1


def test_only_large_maps_use_it(calls: list[tuple[int, ...]]) -> None:
    wide, narrow = TrainingConv2d(192, 192), TrainingConv2d(64, 192)
    for layer, size in ((wide, (64, 64)), (wide, (32, 32)), (narrow, (64, 64))):
        layer(torch.zeros(1, layer.in_channels, *size))
    assert calls == [(1, 192, 64, 64)]


def test_it_is_saved_as_any_convolution() -> None:
    layer = TrainingConv2d(2, 3)
    plain = torch.nn.Conv2d(2, 3, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(layer.eval()(x), plain(x))
