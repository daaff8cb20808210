"""Every operator's rule against perturbation: change a row or a column of the input and see which numbers move."""

from collections.abc import Callable, Collection

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_bounds_hold
from torch import Tensor, nn
from torch.nn import functional as F

from unitscope.receptive_fields import DependencyMode, ReceptiveFields

SIZE = (8, 12)
Function = Callable[[Tensor], Tensor]


def weights(*shape: int) -> Tensor:
    """Numbers of either sign, always the same ones."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def tokens(images: Tensor) -> Tensor:
    """Two by two pixels a token, (image, token, number), twenty-four of twelve numbers each."""
    return F.unfold(images, 2, stride=2).transpose(1, 2)


def in_windows(images: Tensor) -> Tensor:
    """Tokens in windows of two by three, (window, token, number)."""
    return tokens(images).reshape(2, 2, 2, 3, 12).permute(0, 2, 1, 3, 4).reshape(4, 6, 12)


def heads(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, of two heads."""
    projected = inputs @ weights(12, 24)
    return tuple(projected.reshape(*inputs.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4))


def attended(inputs: Tensor, **options: object) -> Tensor:
    return F.scaled_dot_product_attention(*heads(inputs), **options)


def attended_by_hand(inputs: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Attention written out; where the mask is True nothing is attended to."""
    query, key, value = heads(inputs)
    scores = query @ key.transpose(-1, -2) / 2
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


CHESSBOARD = (torch.arange(SIZE[0])[:, None] + torch.arange(SIZE[1])) % 2 == 0
OUTSIDE_BAND = (torch.arange(24)[:, None] - torch.arange(24)).abs() > 3
INDICES = torch.tensor([5, 0, 7, 7, 2])
GRID = torch.rand(1, 5, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.6 - 1.3


def written_into(images: Tensor, write: Callable[[Tensor, Tensor], object]) -> Tensor:
    """What `write` gives for a copy of the images or, where that is no tensor, the copy after `write` wrote into it."""
    copy = images * 2
    returned = write(copy, images)
    return returned if isinstance(returned, Tensor) else copy


def written_as_out(images: Tensor, write: Callable[[Tensor, Tensor], object]) -> Tensor:
    """The same where it is all that an operator is given as `out=`, beside the images that it was made of."""
    out = images.roll((2, 3), (2, 3))
    write(out, images)
    return torch.cat([out, images * 2], 1)


def written_as_complex(images: Tensor, write: Callable[[Tensor, Tensor], object]) -> Tensor:
    """Complex numbers of which a part is written to."""
    numbers = torch.complex(images, images.roll(1, 2))
    write(numbers, images)
    return torch.view_as_real(numbers)


@torch.library.custom_op("unitscope_tests::add_moved", mutates_args=("numbers",))
def add_moved(numbers: Tensor, images: Tensor) -> None:
    numbers.add_(images.roll((3, 3), (2, 3)))


@torch.library.custom_op("unitscope_tests::add_to_all", mutates_args=("first", "rest"))
def add_to_all(first: Tensor, rest: list[Tensor], images: Tensor) -> Tensor:
    for numbers in (first, *rest):
        numbers.add_(images)
    return images.clone()


def side_by_side(*maps: Tensor) -> Tensor:
    return torch.cat(maps, 1)


def data_replaced(numbers: Tensor, images: Tensor) -> Tensor:
    """Tensors that look into the memory that one had, and into the one that it got."""
    memory, view = numbers.data, numbers.detach()
    numbers.data = images.roll(3, 3)
    return side_by_side(numbers, memory, view)


def data_replaced_and_written(numbers: Tensor, images: Tensor) -> Tensor:
    new_data, old_view = images.roll(3, 3), numbers[:, :1]
    numbers.data = new_data
    numbers[:, :, ::2].add_(images.roll(2, 2)[:, :, ::2])
    old_view.zero_()
    return side_by_side(numbers, new_data, old_view)


def data_transposed(numbers: Tensor, images: Tensor) -> Tensor:
    square = numbers[..., :8].clone()
    square.data = square.transpose(2, 3)
    return square * 1


def data_replaced_by_zeros(numbers: Tensor, images: Tensor) -> Tensor:
    numbers.data = torch.zeros(1, 3, *SIZE, dtype=torch.float64)
    return side_by_side(numbers, images)


def swapped(numbers: Tensor, images: Tensor) -> Tensor:
    moved = images.roll(3, 3)
    torch.utils.swap_tensors(numbers, moved)
    return side_by_side(numbers, moved)


def set_to_another_storage(numbers: Tensor, images: Tensor) -> Tensor:
    moved = images.roll(3, 3)
    numbers.set_(moved.untyped_storage(), 0, moved.shape, moved.stride())
    return side_by_side(numbers, moved)


def transposed_in_place(numbers: Tensor, images: Tensor) -> Tensor:
    copy = numbers * 1
    copy.transpose_(2, 3).add_(numbers.roll(1, 2).mT)
    return side_by_side(numbers, copy.mT)


def batch_statistics(images: Tensor) -> Tensor:
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    F.batch_norm(images[..., :3], mean, variance, training=True)
    return images + mean.reshape(1, 3, 1, 1)


OPERATORS: dict[str, Function] = {
    # accumulating
    "cumsum over rows": lambda x: x.cumsum(2),
    "cumsum over columns": lambda x: x.cumsum(-1),
    "cumsum over units": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(3),
    "cummax": lambda x: x.cummax(2).values,
    "cummin": lambda x: x.cummin(3).values,
    "logcumsumexp": lambda x: x.logcumsumexp(2),
    "cumsum from behind": lambda x: x.flip(2).cumsum(2).flip(2),
    "a mean of what came before": lambda x: F.avg_pool2d(x, 2, 1).cumsum(3),
    # reducing
    "sort": lambda x: x.sort().values,
    "sort of rows": lambda x: x.sort(2, descending=True).values,
    "topk": lambda x: x.topk(2).values,
    "median": lambda x: x.median(2).values,
    "kthvalue": lambda x: x.kthvalue(3, 2).values,
    "prod": lambda x: x.prod(3),
    "var": lambda x: x.var(2),
    "var and mean": lambda x: torch.cat(torch.var_mean(x, 3), 1),
    "aminmax": lambda x: torch.cat(torch.aminmax(x, dim=2), 1),
    "logsumexp": lambda x: x.logsumexp(3),
    "norm": lambda x: F.normalize(x, dim=3),
    "max of units": lambda x: x.amax(1, keepdim=True),
    "max of everything": lambda x: x.max().reshape(1, 1),
    "softmax": lambda x: x.softmax(2),
    "log-softmax": lambda x: x.log_softmax(-1),
    # normalising
    "layer norm": lambda x: F.layer_norm(x, (12,)),
    "layer norm over maps": lambda x: F.layer_norm(x, (8, 12)),
    "RMS norm": lambda x: F.rms_norm(x, (12,)),
    "instance norm": lambda x: F.instance_norm(F.max_pool2d(x, 2)),
    "group norm": lambda x: F.group_norm(torch.cat([x, torch.ones_like(x)], 1), 2),
    # moving
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll((3, -2), (2, 3)),
    "turned": lambda x: x.rot90(1, (2, 3)),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(2),
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3),
    "on a diagonal": lambda x: x.mean(2).diag_embed(),
    "repeated": lambda x: x.repeat_interleave(2, 3),
    "windows in columns": lambda x: F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 2), stride=(2, 1)),
    "columns added up": lambda x: F.fold(F.unfold(x, 3, stride=2, padding=1), (8, 12), 3, stride=2, padding=1),
    "columns spread": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 12), (2, 2), dilation=2, stride=(2, 2), padding=1),
    "windows of a tensor": lambda x: x.unfold(3, 4, 3),
    "pixels of a map": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    "mirrored in three dimensions": lambda x: F.pad(x, (2, 1, 1, 2, 1, 1), "reflect"),
    "stretched along one axis": lambda x: F.interpolate(x.flatten(1, 2), scale_factor=1.5, mode="linear"),
    "stretched by three": lambda x: F.interpolate(x[None], (3, 5, 20), mode="trilinear")[0],
    "nearest along one axis": lambda x: F.interpolate(x.flatten(1, 2), 5),
    # choosing
    "constant indices": lambda x: x[:, :, INDICES],
    "pairs of constant indices": lambda x: x[:, :, INDICES, INDICES + 2],
    "a constant mask": lambda x: x[:, :, CHESSBOARD],
    "masked_select": lambda x: x.masked_select(CHESSBOARD).reshape(1, -1),
    "gather": lambda x: x.gather(2, INDICES.reshape(1, 1, 5, 1).expand(1, 3, 5, 12)),
    "gather at indices made of the image": lambda x: x.gather(3, x.argsort(3)[..., :4]),
    "take": lambda x: x.take(INDICES * 11).reshape(1, -1),
    "where": lambda x: torch.where(CHESSBOARD, x, x.roll(3, 3)),
    "where by the image": lambda x: torch.where(x > 1.05, x, x.roll(2, 2)),
    "masked_fill": lambda x: x.masked_fill(CHESSBOARD, 3.0),
    "a codebook": lambda x: F.embedding((x.abs().mean(1) * 3).long().clamp(max=9), weights(10, 4)),
    # writing
    "by index": lambda x: written_into(x, lambda r, i: r.index_put_((torch.tensor([0]), torch.tensor([1])), i[:, 0])),
    "by a mask": lambda x: written_into(x, lambda r, i: r.__setitem__((slice(None), slice(None), CHESSBOARD), 0.0)),
    "added by index": lambda x: x.index_add(3, INDICES, x[..., :5] * 2),
    "copied by index": lambda x: x.index_copy(2, INDICES[:3], x[:, :, 3:6]),
    "filled by index": lambda x: x.index_fill(3, INDICES, 1.0),
    "scatter": lambda x: torch.zeros_like(x).scatter(3, INDICES.reshape(1, 1, 1, 5).expand(1, 3, 8, 5)[..., :3], x),
    "scatter_add": lambda x: x.scatter_add(2, INDICES.reshape(1, 1, 5, 1).expand(1, 3, 5, 12), x),
    "scatter_reduce": lambda x: x.scatter_reduce(3, INDICES.expand(1, 3, 8, 5), x, "sum"),
    "masked_scatter": lambda x: x.masked_scatter(CHESSBOARD, x * 3),
    "slice_scatter": lambda x: x.slice_scatter(x[..., :3] * 2, 3, 4, 10, 2),
    "select_scatter": lambda x: x.select_scatter(x[:, :, 0], 2, 5),
    "a number of the image everywhere": lambda x: x.clone().fill_(x[0, 0, 3, 4]),
    "added to all of a list": lambda x: written_into(x, lambda r, i: torch._foreach_add_([r], [i.roll(3, 3)])),
    "copied into a list": lambda x: written_into(torch.zeros_like(x), lambda r, _: torch._foreach_copy_([r], [x.roll(3, 3)])),
    "copied into parts": lambda x: written_into(
        x, lambda r, i: torch._foreach_copy_([r[:, :, ::2], r[:, :, 1::2]], [i.roll(3, 3)[:, :, ::2], i[:, :, 1::2]])
    ),
    "a list that holds a tensor twice": lambda x: written_into(x, lambda r, i: torch._foreach_add_([r, r], [i.roll(3, 3), i.roll(1, 2)])),
    "parts made zero": lambda x: written_into(x, lambda r, _: torch._foreach_zero_([r[:, :, ::2]])),
    "products of lists": lambda x: side_by_side(*torch._foreach_mul([x, x.roll(2, 3)], [x.roll(1, 2), x])),
    "norms of a list": lambda x: torch.stack(torch._foreach_norm([x[0, 0], x[0, 1, :3]]))[None],
    "tril in place on a copy": lambda x: written_into(x, lambda r, _: side_by_side((r * 1).tril_(), r)),
    "triu in place on a copy": lambda x: written_into(x, lambda r, _: side_by_side((r * 1).triu_(1), r)),
    "triu in place on a part": lambda x: written_into(x, lambda r, _: [r[:, :, ::2].triu_()]),
    "transposed in place": lambda x: written_into(x, transposed_in_place),
    "statistics of the image": batch_statistics,
    "added to a constant": lambda x: torch.zeros(1, 3, *SIZE).double().add_((x - picture(0)).abs().log()),
    "tril out": lambda x: written_as_out(x, lambda o, i: torch.tril(i, out=o)),
    "gather out": lambda x: written_as_out(x, lambda o, i: torch.gather(i, 3, INDICES.expand(1, 3, 8, 5), out=o[..., :5])),
    "index_select out": lambda x: written_as_out(x, lambda o, i: torch.index_select(i, 2, INDICES, out=o[:, :, :5])),
    "roll out": lambda x: written_as_out(x, lambda o, i: torch.ops.aten.roll.out(i, [1], [2], out=o)),
    "cat out": lambda x: written_as_out(x, lambda o, i: torch.cat([i[..., :6], i[..., :6]], 3, out=o)),
    "add out": lambda x: written_as_out(x, lambda o, i: torch.add(i, i.roll(1, 2), out=o)),
    "product out": lambda x: written_as_out(x, lambda o, i: torch.bmm(i[0], weights(3, 12, 12), out=o[0])),
    "maxima out": lambda x: written_as_out(x, lambda o, i: torch.amax(i, 3, True, out=o[..., :1])),
    "interpolated out": lambda x: written_as_out(
        x, lambda o, i: torch.ops.aten.upsample_nearest2d.out(i[..., :4, :6].contiguous(), [8, 12], out=o)
    ),
    "nothing of the image out": lambda x: written_as_out(x, lambda o, _: torch.add(CHESSBOARD.double(), 1.0, out=o[0, 0])),
    "a product beside what it is made of": lambda x: written_into(
        x, lambda r, _: [r[0, :, :4].baddbmm_(r[0, :, 4:, :4], weights(3, 4, 12))]
    ),
    "sums over itself out": lambda x: written_as_out(x, lambda o, _: torch.cumsum(o, 3, out=o)),
    "every second number as integers": lambda x: written_into(x, lambda r, _: [r.view(torch.int16)[..., ::2].zero_()]),
    "copied as integers": lambda x: written_into(
        x, lambda r, i: [r.view(torch.int32)[..., ::2].copy_(i.roll(2, 3).view(torch.int32)[..., ::2])]
    ),
    "as smaller numbers and larger ones": lambda x: x.float().view(torch.int16).view(torch.int32).view(torch.float64),
    "data replaced": lambda x: written_into(x, data_replaced),
    "data replaced, written to": lambda x: written_into(x, data_replaced_and_written),
    "data transposed": lambda x: written_into(x, data_transposed),
    "data replaced by zeros": lambda x: written_into(x, data_replaced_by_zeros),
    "swapped": lambda x: written_into(x, swapped),
    "set to another storage": lambda x: written_into(x, set_to_another_storage),
    # multiplying
    "tokens mixed": lambda x: (weights(5, 24) @ tokens(x)),
    "linear": lambda x: F.linear(x, weights(5, 12)),
    "a matrix and a vector": lambda x: (x[0, 0] @ weights(12))[None],
    "a vector and a matrix": lambda x: (weights(8) @ x[0, 0])[None],
    "addmv": lambda x: torch.addmv(x[0, 1, :, 0], x[0, 0], x[0, 2, 3])[None],
    "dot": lambda x: torch.dot(x[0, 0, :, 1], x[0, 1, :, 5]).reshape(1, 1),
    "addbmm": lambda x: torch.addbmm(x[0, 0, :, :5], x[0], weights(3, 12, 5))[None],
    "baddbmm": lambda x: torch.baddbmm(x[0, :, :, :5], x[0], weights(3, 12, 5))[None],
    "outer": lambda x: torch.outer(x[0, 0, 2], x[0, 1, :, 7])[None],
    "einsum": lambda x: torch.einsum("nchw,nchv->ncwv", x, x),
    "rows by columns": lambda x: x.transpose(2, 3) @ x,
    "bilinear": lambda x: F.bilinear(x, x.roll(1, 2), weights(5, 12, 12)),
    "distances": lambda x: torch.cdist(x, x.roll(1, 3)[:, :, :3]),
    "distances by products": lambda x: torch.cdist(x, x.roll(1, 3), compute_mode="use_mm_for_euclid_dist"),
    "similarities": lambda x: F.cosine_similarity(x, x.roll(1, 2), dim=1),
    "inverse": lambda x: torch.linalg.inv(x[:, :, :4, :4] + 9 * torch.eye(4)),
    "determinant": lambda x: torch.linalg.det(x[:, :, 2:5, 2:5] + 5 * torch.eye(3)),
    "singular values": lambda x: torch.linalg.svdvals(x[:, :, :4]),
    "equations solved": lambda x: torch.linalg.solve(x[:, :, :4, :4] + 9 * torch.eye(4), x[:, :, 4:, 8:]),
    "Fourier along rows": lambda x: torch.fft.rfft(x).abs(),
    "Fourier and back": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(weights(8, 7, 2))),
    "real and imaginary": lambda x: torch.view_as_real(torch.fft.fft(x, dim=2) * (1 + 2j)),
    "turned in the complex plane": lambda x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(3, (6, 2)).contiguous()) * torch.view_as_complex(weights(6, 2))
    ),
    "weights of the image": lambda x: F.conv2d(x, x.mean((2, 3)).reshape(1, 3, 1, 1) * weights(4, 3, 2, 2), padding=1),
    "weights of a corner": lambda x: F.conv2d(x[..., 3:], x[:, :, :2, :2].reshape(3, 1, 2, 2).repeat(1, 1, 1, 1), groups=3),
    "a bias of a corner": lambda x: F.conv2d(x, weights(3, 3, 2, 2), x[0, :, 0, 0]),
    # attending
    "attention": lambda x: attended(tokens(x)),
    "attention in windows": lambda x: attended(in_windows(x)).reshape(1, -1),
    "causal attention": lambda x: attended(tokens(x), is_causal=True),
    "attention in a band": lambda x: attended(tokens(x), attn_mask=~OUTSIDE_BAND),
    "attention with a bias": lambda x: attended(tokens(x), attn_mask=torch.zeros(24, 24).double().masked_fill(OUTSIDE_BAND, -torch.inf)),
    "attention by hand": lambda x: attended_by_hand(in_windows(x)).reshape(1, -1),
    "attention by hand, masked": lambda x: attended_by_hand(tokens(x), OUTSIDE_BAND),
    "attention by hand, −∞ added": lambda x: attended_by_hand(tokens(x), None, torch.zeros(24, 24).masked_fill(OUTSIDE_BAND, -torch.inf)),
    "attention of learned queries": lambda x: F.scaled_dot_product_attention(weights(1, 2, 3, 4), *heads(tokens(x))[1:]),
    "attention of groups of heads": lambda x: F.scaled_dot_product_attention(
        heads(tokens(x))[0], heads(tokens(x))[1][:, :1], heads(tokens(x))[2][:, :1], enable_gqa=True
    ),
    "attention of units": lambda x: (x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2),
    # sampling
    "sampled between cells": lambda x: F.grid_sample(x, GRID, align_corners=False),
    "sampled at corners": lambda x: F.grid_sample(x, GRID, align_corners=True, padding_mode="border"),
    "sampled at the nearest": lambda x: F.grid_sample(x, GRID, "nearest", align_corners=False),
    "a constant rotation": lambda x: F.grid_sample(
        x, F.affine_grid(weights(1, 2, 3) * 0.5, [1, 3, 5, 4], align_corners=False), align_corners=False
    ),
    "recurrent": lambda x: recurrent(nn.LSTM)(x.flatten(1, 2))[0],
    "recurrent from behind": lambda x: recurrent(nn.GRU, bidirectional=True)(x.flatten(1, 2))[0],
}  # fmt: skip


BOUNDARIES = torch.arange(12) / 10

# What depends on more than perturbation finds: cells that only other weights would send a point to, weights of other window cells, both
# parts of a complex number, all of the boundaries between which a number lies.
NOT_MINIMAL: dict[str, Function] = {
    "the real part multiplied": lambda x: written_as_complex(x, lambda z, i: z.real.mul_(i.roll(2, 3))),
    "the imaginary part made zero": lambda x: written_as_complex(x, lambda z, _: z.imag.zero_()),
    "pairs of a complex number": lambda x: written_as_complex(x, lambda z, i: torch.view_as_real(z)[..., 0].add_(i.roll(2, 3))),
    "the imaginary part of a conjugate": lambda x: written_as_complex(x, lambda z, i: z.conj().imag.add_(i.roll(2, 3))),
    "complex numbers of pairs": lambda x: written_into(
        x,
        lambda r, i: [
            torch.view_as_complex(r.unflatten(3, (6, 2))).mul_(torch.view_as_complex(i.roll(1, 2).unflatten(3, (6, 2))))
        ],
    ),
    "as larger numbers": lambda x: written_into(x.float(), lambda r, _: [r.view(torch.float64).mul_(3)]),
    "buckets of the image": lambda x: torch.bucketize(x, x[0, 0, 3] / 20 + BOUNDARIES),
    "constants in buckets of the image": lambda x: torch.bucketize(weights(1, 30), x[0, 0, 3] / 20 + BOUNDARIES),
    "searched in each row": lambda x: torch.searchsorted(x / 20 + BOUNDARIES, x.roll(1, 2)[..., :5].contiguous()),
    "a constant searched": lambda x: torch.searchsorted(x[0, 0, 3] / 20 + BOUNDARIES, 0.5).reshape(1, 1),
    "searched in an order": lambda x: torch.searchsorted(x, x.roll(1, 2), sorter=x.argsort(3)),
    "spread with weights of a corner": lambda x: F.conv_transpose2d(x[..., 5:], x[:, :, :2, :2].reshape(3, 1, 2, 2), stride=2),
    "sampled where the image says": lambda x: F.grid_sample(
        F.avg_pool2d(x, 2), (x[:, :2, :4, :5].permute(0, 2, 3, 1) / 2).tanh(), align_corners=False
    ),
}


# What depends on everything for want of a rule, and the names of the operators that have none.
WITHOUT_RULE: dict[str, tuple[Function, set[str]]] = {
    "an operator of one's own": (lambda x: written_into(x, add_moved), {"unitscope_tests::add_moved"}),
    "one that writes over zeros": (lambda x: written_into(torch.zeros_like(x), lambda r, _: add_moved(r, x)), {"unitscope_tests::add_moved"}),
    "one that writes into a list": (
        lambda x: written_into(x, lambda r, i: [add_to_all(torch.zeros_like(r), [r], i.roll(2, 3))]),
        {"unitscope_tests::add_to_all"},
    ),
    "one that writes where numbers overlap": (
        lambda x: written_into(x, lambda r, i: add_moved(r.as_strided((1, 1, 5, 4), (1, 1, 3, 1)), i[:, :1, :5, :4])),
        {"unitscope_tests::add_moved", "as_strided"},
    ),
    "copies of parts out": (
        lambda x: written_as_out(x, lambda o, i: torch.ops.aten.split_with_sizes_copy.out(i, [6, 6], 3, out=[o[..., :6], o[..., 6:]])),
        {"split_with_sizes_copy"},
    ),
}  # fmt: skip


def recurrent(kind: type[nn.Module], **options: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(12, 3, batch_first=True, **options).double()


class AsUnits(nn.Module):
    """A function as a module whose outputs are the units of one cell."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images).reshape(1, -1)


def traced_bounds(function: Function) -> tuple[list[np.ndarray], set[str]]:
    """First row and exclusive stop, and the same for columns, that each number of the output can see; operators without a rule."""
    mode, images = DependencyMode(), picture(0)
    with torch.no_grad(), mode:
        mode.start(images)
        bounds = mode.bounds_of(AsUnits(function)(images))
    fields = ReceptiveFields.from_bounds(bounds, *SIZE)
    lines = [np.clip(axis[:, :, 0, 0], 0, length) for axis, length in zip((fields.rows, fields.columns), SIZE, strict=True)]
    return lines, set(mode.unknown_operators)


def picture(seed: int) -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def assert_rules_hold(function: Function, minimal: bool = True, unknown_operators: Collection[str] = ()) -> None:
    """The traced bounds of all numbers are those that perturbation finds, and the smallest if they must be."""
    bounds, unknown = traced_bounds(function)
    assert unknown == set(unknown_operators)
    assert_bounds_hold(AsUnits(function), [picture(seed) for seed in range(3)], bounds, minimal)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_an_operator_gives_depends_on_what_its_rule_says(name: str) -> None:
    assert_rules_hold(OPERATORS[name])


@pytest.mark.parametrize("name", NOT_MINIMAL)
def test_what_an_operator_depends_on_lies_in_its_box(name: str) -> None:
    assert_rules_hold(NOT_MINIMAL[name], minimal=False)


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_what_an_operator_without_a_rule_writes_depends_on_everything(name: str) -> None:
    function, unknown_operators = WITHOUT_RULE[name]
    assert_rules_hold(function, minimal=False, unknown_operators=unknown_operators)


@pytest.mark.parametrize("name", [n for n in OPERATORS if n.startswith(("tril", "triu")) or n.endswith(" out")])
def test_following_an_operator_leaves_what_it_writes_as_it_is(name: str) -> None:
    images = picture(0)
    expected = OPERATORS[name](images)
    with DependencyMode() as mode:
        mode.start(images)
        torch.testing.assert_close(OPERATORS[name](images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_rules_hold_whatever_the_default_type_is(dtype: torch.dtype) -> None:
    for name in [*list(OPERATORS)[::5], "columns added up", "stretched by three", "by index", "attention by hand, masked"]:
        function = OPERATORS[name]
        expected_bounds, expected_unknown = traced_bounds(function)
        torch.set_default_dtype(dtype)
        try:
            bounds, unknown = traced_bounds(function)
        finally:
            torch.set_default_dtype(torch.float32)
        assert unknown == expected_unknown, name
        for lines, expected in zip(bounds, expected_bounds, strict=True):
            np.testing.assert_array_equal(lines, expected, err_msg=name)


@pytest.mark.parametrize("name", ["cumsum over rows", "causal attention", "attention in a band", "columns added up", "linear", "einsum",
                                  "group norm", "similarities", "recurrent", "a constant rotation", "by a mask",
                                  "copied into a list", "tril out", "tril in place on a copy", "every second number as integers"])  # fmt: skip
def test_rules_hold_in_inference_mode(name: str) -> None:
    assert_rules_hold(torch.inference_mode()(OPERATORS[name]))


def as_map(function: Function) -> Function:
    """The same, cut or repeated to the shape of the images, so that functions can follow each other."""

    def function_as_map(maps: Tensor) -> Tensor:
        numbers = function(maps).reshape(-1)
        count = 3 * SIZE[0] * SIZE[1]
        return numbers.repeat(-(-count // len(numbers)))[:count].reshape(1, 3, *SIZE)

    return function_as_map


STEPS: dict[str, Function] = {
    "mixed units": lambda x: torch.einsum("nchw,dc->ndhw", x, weights(3, 3).abs()),
    "windows": lambda x: F.conv2d(x, weights(3, 3, 3, 2).abs(), padding=(1, 1))[..., :-1],
    "added": lambda x: x + x.roll(1, 3) / 3,
    **{name: as_map(OPERATORS[name]) for name in (
        "cumsum over rows", "logcumsumexp", "flip", "roll", "softmax", "layer norm", "triu", "columns added up", "windows of a tensor",
        "constant indices", "a constant mask", "gather", "where", "masked_fill", "by index", "slice_scatter", "scatter_add", "addbmm",
        "attention in windows", "causal attention", "attention in a band", "attention by hand, masked", "sampled between cells",
        "Fourier along rows", "aminmax", "stretched along one axis", "repeated", "group norm",
    )},
}  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
def test_a_recurrent_layer_in_float32_depends_on_what_came_before(reverse: bool) -> None:
    """torch has a fused operator for it, in single precision alone; its bounds are those of the layer decomposed, as in double precision."""
    torch.manual_seed(0)
    layer, mode, images = nn.LSTM(12, 3, bidirectional=reverse), DependencyMode(), torch.rand(1, 3, *SIZE)
    with torch.no_grad(), mode:
        mode.start(images)
        bounds = mode.bounds_of(layer(images[0])[0].reshape(1, -1))
    assert not mode.unknown_operators
    fields = ReceptiveFields.from_bounds(bounds, *SIZE)
    decomposed, _ = traced_bounds(lambda x: layer.double()(x[0])[0])
    for lines, expected in zip((fields.rows, fields.columns), decomposed, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(lines[:, :, 0, 0], expected.shape), expected)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4), st.booleans())
def test_any_chain_of_operators_depends_on_what_the_rules_say(names: list[str], inference: bool) -> None:
    """All that moves a number lies in its box; whether the box is the smallest is tested one operator at a time."""

    def chain(images: Tensor) -> Tensor:
        with torch.inference_mode(inference):
            for name in names:
                images = STEPS[name](images)
        return images

    assert_rules_hold(chain, minimal=False)
