"""3 x 3 convolutions that train on a CPU with a quarter of the multiplications.

Winograd's minimal filtering F(4 x 4, 3 x 3) (arXiv 1509.09308): a tile of 6 x 6 inputs and the kernel are each
transformed to 6 x 6 points, multiplied point by point (36 products for 16 outputs, where the convolution has 144), and
transformed back. The products of all tiles and channels are 36 matrix products. The transforms only add and scale, so
they have to stay in the processor's cache: a feature map is worked on in strips of rows.

Symbols: N images, C input and K output channels, T tiles of a strip, of 4 x 4 outputs each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, REACH, POINTS = 4, 6, 6
"""Sides of a tile of outputs, and of the inputs it depends on; points along each."""
STRIP_BYTES = 2**24
"""The transformed inputs of a strip, which a core's share of the cache holds."""
LEAST_CHANNELS, LEAST_TILES = 192, 256
"""Below, the plain convolution is faster."""

Matrix = tuple[tuple[float, ...], ...]

INPUTS: Matrix = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL: Matrix = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUTS: Matrix = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
"""From inputs and kernel to points, and from points to outputs; on both axes alike."""


class TrainingConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 that keeps the size of its map, as nn.Conv2d computes it but for rounding.

    While training in float32 on a CPU, large maps go through :class:`WinogradConvolution`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self._pays(x):
            out: Tensor = WinogradConvolution.apply(x, self.weight, self.bias)
            return out
        return super().forward(x)

    def _pays(self, x: Tensor) -> bool:
        tiles = x.shape[0] * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
        return (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and min(self.in_channels, self.out_channels) >= LEAST_CHANNELS
            and tiles >= LEAST_TILES
        )


class WinogradConvolution(torch.autograd.Function):
    """(N, C, H, W), weight (K, C, 3, 3), bias (K,) -> (N, K, H, W), padded by one, with channels last in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        padded, strips = _pad(x), _strips(x)
        kernels = _kernels_to_points(weight)
        out = padded.new_empty(x.shape[0], TILE * strips[-1].stop, padded.shape[2] - 2, len(weight))
        for strip in strips:
            points = _to_points(INPUTS, _inputs_of(padded, strip), REACH)
            products = torch.bmm(points.flatten(2, 4).flatten(0, 1), kernels)
            products = products.view(*points.shape[:-1], -1)
            _to_outputs(products, out[:, TILE * strip.start : TILE * strip.stop])
        out += bias
        return out[:, : x.shape[2], : x.shape[3]].permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        padded, strips = _pad(x), _strips(x)
        kernels = _kernels_to_points(weight)
        grad = grad.permute(0, 2, 3, 1)
        size = (TILE * strips[-1].stop, padded.shape[2] - 2)
        grad_out = F.pad(grad, (0, 0, 0, size[1] - grad.shape[2], 0, size[0] - grad.shape[1]))
        grad_kernels = torch.zeros_like(kernels)
        grad_padded = torch.zeros_like(padded) if ctx.needs_input_grad[0] else None
        for strip in strips:
            points = _to_points(INPUTS, _inputs_of(padded, strip), REACH).flatten(2, 4).flatten(0, 1)
            grads = _to_points(_transposed(OUTPUTS), grad_out[:, TILE * strip.start : TILE * strip.stop], TILE)
            shape = grads.shape[:-1]
            grads = grads.flatten(2, 4).flatten(0, 1)
            grad_kernels.baddbmm_(points.transpose(1, 2), grads)
            if grad_padded is not None:
                grad_points = torch.bmm(grads, kernels.transpose(1, 2)).view(*shape, -1)
                _add_to_inputs(grad_points, _inputs_of(grad_padded, strip))
        grad_x = None
        if grad_padded is not None:
            grad_x = grad_padded[:, 1 : 1 + x.shape[2], 1 : 1 + x.shape[3]].permute(0, 3, 1, 2)
        return grad_x, _kernels_from_points(grad_kernels), grad.sum((0, 1, 2))


def _strips(x: Tensor) -> list[range]:
    """The rows of tiles, in portions."""
    rows, columns = -(-x.shape[2] // TILE), -(-x.shape[3] // TILE)
    at_once = max(1, STRIP_BYTES // (4 * POINTS**2 * x.shape[0] * columns * x.shape[1]))
    return [range(start, min(start + at_once, rows)) for start in range(0, rows, at_once)]


def _pad(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H', W', C) with a border of zeros, one pixel and up to whole tiles."""
    height, width = x.shape[2:]
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + -width % TILE, 1, 1 + -height % TILE))


def _inputs_of(padded: Tensor, strip: range) -> Tensor:
    """The rows that a strip depends on."""
    return padded[:, TILE * strip.start : TILE * strip.stop + REACH - TILE]


def _kernels_to_points(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (36, C, K)."""
    matrix = weight.new_tensor(KERNEL)
    return torch.einsum("ai,bj,kcij->abck", matrix, matrix, weight).flatten(0, 1)


def _kernels_from_points(grad: Tensor) -> Tensor:
    """The gradient (36, C, K) -> (K, C, 3, 3)."""
    matrix = grad.new_tensor(KERNEL)
    return torch.einsum("ai,bj,abck->kcij", matrix, matrix, grad.view(POINTS, POINTS, *grad.shape[1:]))


def _to_points(matrix: Matrix, strip: Tensor, size: int) -> Tensor:
    """(N, H, W, C), of which every tile takes ``size`` x ``size`` -> (6, 6, N, H / 4, W / 4, C)."""
    rows = _combine(matrix, list(_cells(strip, 1, size)))
    shape = (*rows[0].shape[:2], (strip.shape[2] - size) // TILE + 1, strip.shape[3])
    points = strip.new_empty(POINTS, POINTS, *shape)
    for row, target in zip(rows, points, strict=True):
        _combine(matrix, list(_cells(row, 2, size)), target.unbind())
    return points


def _to_outputs(points: Tensor, out: Tensor) -> None:
    """(6, 6, N, H / 4, W / 4, K) -> (N, H, W, K)."""
    n, rows, columns, channels = points.shape[2:]
    wide = points.new_empty(POINTS, n, rows, TILE * columns, channels)
    for row, target in zip(points, wide, strict=True):
        _combine(OUTPUTS, row.unbind(), list(_cells(target, 2, TILE)))
    _combine(OUTPUTS, wide.unbind(), list(_cells(out, 1, TILE)))


def _add_to_inputs(points: Tensor, inputs: Tensor) -> None:
    """(6, 6, N, H / 4, W / 4, C) is added to (N, H, W, C), where neighbouring tiles share two pixels."""
    n, rows, _, channels = points.shape[2:]
    wide = points.new_zeros(POINTS, n, rows, inputs.shape[2], channels)
    back = _transposed(INPUTS)
    for row, target in zip(points, wide, strict=True):
        for cell, part in zip(_cells(target, 2, REACH), _combine(back, row.unbind()), strict=True):
            cell += part
    for cell, part in zip(_cells(inputs, 1, REACH), _combine(back, wide.unbind()), strict=True):
        cell += part


def _cells(x: Tensor, axis: int, size: int) -> Iterator[Tensor]:
    """The first pixel of every tile along an axis, the second, and so on; of tiles that start every 4 pixels."""
    tiles = (x.shape[axis] - size) // TILE + 1
    for i in range(size):
        yield x.narrow(axis, i, TILE * (tiles - 1) + 1)[(slice(None),) * axis + (slice(None, None, TILE),)]


def _combine(matrix: Matrix, parts: Sequence[Tensor], out: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
    """Matrix times parts, a tensor per row, into ``out`` where given."""
    out = out or [parts[0].new_empty(parts[0].shape) for _ in matrix]
    for row, target in zip(matrix, out, strict=True):
        # A part that counts once comes first where there is one, so that no pass only scales.
        terms = sorted((term for term in zip(row, parts, strict=True) if term[0]), key=lambda term: term[0] != 1)
        (factor, total), *others = terms
        if factor != 1 or not others:
            total = torch.mul(total, factor, out=target)
        for factor, part in others:
            total = torch.add(total, part, alpha=factor, out=target)
    return out


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
