"""Every operator's rule against perturbation: change a row or a column of the input and see which numbers move."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from oracles import assert_moved
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


def heads(given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, of two heads."""
    mixed = given @ weights(12, 24)
    return tuple(mixed.reshape(*given.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4))


def attended(given: Tensor, **how: object) -> Tensor:
    return F.scaled_dot_product_attention(*heads(given), **how)


def attended_by_hand(given: Tensor, masked: Tensor | None = None, added: Tensor | None = None) -> Tensor:
    query, key, value = heads(given)
    scores = query @ key.transpose(-1, -2) / 2
    if masked is not None:
        scores = scores.masked_fill(masked, -torch.inf)
    return (scores if added is None else scores + added).softmax(-1) @ value


CHESS = (torch.arange(SIZE[0])[:, None] + torch.arange(SIZE[1])) % 2 == 0
BAND = (torch.arange(24)[:, None] - torch.arange(24)).abs() > 3
SOME = torch.tensor([5, 0, 7, 7, 2])
GRID = torch.rand(1, 5, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.6 - 1.3


def written(images: Tensor, write: Callable[[Tensor, Tensor], object]) -> Tensor:
    """A copy of the images, after something was written into it that is made of their upper left."""
    result = images * 2
    other = write(result, images)
    return other if isinstance(other, Tensor) else result


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


@torch.library.custom_op("unitscope_tests::add_to_all", mutates_args=("first", "others"))
def add_to_all(first: Tensor, others: list[Tensor], images: Tensor) -> Tensor:
    for numbers in (first, *others):
        numbers.add_(images)
    return images.clone()


def beside(first: Tensor, *others: Tensor) -> Tensor:
    return torch.cat([first, *others], 1)


def data_of_another(numbers: Tensor, images: Tensor) -> Tensor:
    """Tensors that look into the memory that one had, and into the one that it was given."""
    memory, view = numbers.data, numbers.detach()
    numbers.data = images.roll(3, 3)
    return beside(numbers, memory, view)


def data_of_another_written(numbers: Tensor, images: Tensor) -> Tensor:
    other, view = images.roll(3, 3), numbers[:, :1]
    numbers.data = other
    numbers[:, :, ::2].add_(images.roll(2, 2)[:, :, ::2])
    view.zero_()
    return beside(numbers, other, view)


def data_turned(numbers: Tensor, images: Tensor) -> Tensor:
    square = numbers[..., :8].clone()
    square.data = square.transpose(2, 3)
    return square * 1


def data_of_nothing(numbers: Tensor, images: Tensor) -> Tensor:
    numbers.data = torch.zeros(1, 3, *SIZE, dtype=torch.float64)
    return beside(numbers, images)


def swapped(numbers: Tensor, images: Tensor) -> Tensor:
    other = images.roll(3, 3)
    torch.utils.swap_tensors(numbers, other)
    return beside(numbers, other)


def set_to_another(numbers: Tensor, images: Tensor) -> Tensor:
    other = images.roll(3, 3)
    numbers.set_(other.untyped_storage(), 0, other.shape, other.stride())
    return beside(numbers, other)


def turned_in_place(numbers: Tensor, images: Tensor) -> Tensor:
    copy = numbers * 1
    copy.transpose_(2, 3).add_(numbers.roll(1, 2).mT)
    return beside(numbers, copy.mT)


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
    "known places": lambda x: x[:, :, SOME],
    "pairs of known places": lambda x: x[:, :, SOME, SOME + 2],
    "a known mask": lambda x: x[:, :, CHESS],
    "masked_select": lambda x: x.masked_select(CHESS).reshape(1, -1),
    "gather": lambda x: x.gather(2, SOME.reshape(1, 1, 5, 1).expand(1, 3, 5, 12)),
    "gather from places made of the image": lambda x: x.gather(3, x.argsort(3)[..., :4]),
    "take": lambda x: x.take(SOME * 11).reshape(1, -1),
    "where": lambda x: torch.where(CHESS, x, x.roll(3, 3)),
    "where by the image": lambda x: torch.where(x > 1.05, x, x.roll(2, 2)),
    "masked_fill": lambda x: x.masked_fill(CHESS, 3.0),
    "a codebook": lambda x: F.embedding((x.abs().mean(1) * 3).long().clamp(max=9), weights(10, 4)),
    # writing
    "by index": lambda x: written(x, lambda r, i: r.index_put_((torch.tensor([0]), torch.tensor([1])), i[:, 0])),
    "by a mask": lambda x: written(x, lambda r, i: r.__setitem__((slice(None), slice(None), CHESS), 0.0)),
    "added by index": lambda x: x.index_add(3, SOME, x[..., :5] * 2),
    "copied by index": lambda x: x.index_copy(2, SOME[:3], x[:, :, 3:6]),
    "filled by index": lambda x: x.index_fill(3, SOME, 1.0),
    "scatter": lambda x: torch.zeros_like(x).scatter(3, SOME.reshape(1, 1, 1, 5).expand(1, 3, 8, 5)[..., :3], x),
    "scatter_add": lambda x: x.scatter_add(2, SOME.reshape(1, 1, 5, 1).expand(1, 3, 5, 12), x),
    "scatter_reduce": lambda x: x.scatter_reduce(3, SOME.expand(1, 3, 8, 5), x, "sum"),
    "masked_scatter": lambda x: x.masked_scatter(CHESS, x * 3),
    "slice_scatter": lambda x: x.slice_scatter(x[..., :3] * 2, 3, 4, 10, 2),
    "select_scatter": lambda x: x.select_scatter(x[:, :, 0], 2, 5),
    "a number of the image everywhere": lambda x: x.clone().fill_(x[0, 0, 3, 4]),
    "added to all of a list": lambda x: written(x, lambda r, i: torch._foreach_add_([r], [i.roll(3, 3)])),
    "copied into a list": lambda x: written(torch.zeros_like(x), lambda r, _: torch._foreach_copy_([r], [x.roll(3, 3)])),
    "copied into parts": lambda x: written(
        x, lambda r, i: torch._foreach_copy_([r[:, :, ::2], r[:, :, 1::2]], [i.roll(3, 3)[:, :, ::2], i[:, :, 1::2]])
    ),
    "a list that holds a tensor twice": lambda x: written(x, lambda r, i: torch._foreach_add_([r, r], [i.roll(3, 3), i.roll(1, 2)])),
    "parts made zero": lambda x: written(x, lambda r, _: torch._foreach_zero_([r[:, :, ::2]])),
    "products of lists": lambda x: beside(*torch._foreach_mul([x, x.roll(2, 3)], [x.roll(1, 2), x])),
    "norms of a list": lambda x: torch.stack(torch._foreach_norm([x[0, 0], x[0, 1, :3]]))[None],
    "tril in place on a copy": lambda x: written(x, lambda r, _: beside((r * 1).tril_(), r)),
    "triu in place on a copy": lambda x: written(x, lambda r, _: beside((r * 1).triu_(1), r)),
    "triu in place on a part": lambda x: written(x, lambda r, _: [r[:, :, ::2].triu_()]),
    "turned in place": lambda x: written(x, turned_in_place),
    "statistics of the image": batch_statistics,
    "added to what was known": lambda x: torch.zeros(1, 3, *SIZE).double().add_((x - picture(0)).abs().log()),
    "tril out": lambda x: written_as_out(x, lambda o, i: torch.tril(i, out=o)),
    "gather out": lambda x: written_as_out(x, lambda o, i: torch.gather(i, 3, SOME.expand(1, 3, 8, 5), out=o[..., :5])),
    "index_select out": lambda x: written_as_out(x, lambda o, i: torch.index_select(i, 2, SOME, out=o[:, :, :5])),
    "roll out": lambda x: written_as_out(x, lambda o, i: torch.ops.aten.roll.out(i, [1], [2], out=o)),
    "cat out": lambda x: written_as_out(x, lambda o, i: torch.cat([i[..., :6], i[..., :6]], 3, out=o)),
    "add out": lambda x: written_as_out(x, lambda o, i: torch.add(i, i.roll(1, 2), out=o)),
    "product out": lambda x: written_as_out(x, lambda o, i: torch.bmm(i[0], weights(3, 12, 12), out=o[0])),
    "maxima out": lambda x: written_as_out(x, lambda o, i: torch.amax(i, 3, True, out=o[..., :1])),
    "interpolated out": lambda x: written_as_out(
        x, lambda o, i: torch.ops.aten.upsample_nearest2d.out(i[..., :4, :6].contiguous(), [8, 12], out=o)
    ),
    "nothing of the image out": lambda x: written_as_out(x, lambda o, _: torch.add(CHESS.double(), 1.0, out=o[0, 0])),
    "a product beside what it is made of": lambda x: written(
        x, lambda r, _: [r[0, :, :4].baddbmm_(r[0, :, 4:, :4], weights(3, 4, 12))]
    ),
    "sums over itself out": lambda x: written_as_out(x, lambda o, _: torch.cumsum(o, 3, out=o)),
    "every second number as integers": lambda x: written(x, lambda r, _: [r.view(torch.int16)[..., ::2].zero_()]),
    "copied as integers": lambda x: written(
        x, lambda r, i: [r.view(torch.int32)[..., ::2].copy_(i.roll(2, 3).view(torch.int32)[..., ::2])]
    ),
    "as smaller numbers and larger ones": lambda x: x.float().view(torch.int16).view(torch.int32).view(torch.float64),
    "data of another": lambda x: written(x, data_of_another),
    "data of another, written to": lambda x: written(x, data_of_another_written),
    "data turned": lambda x: written(x, data_turned),
    "data of nothing": lambda x: written(x, data_of_nothing),
    "swapped": lambda x: written(x, swapped),
    "set to another": lambda x: written(x, set_to_another),
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
    "attention in a band": lambda x: attended(tokens(x), attn_mask=~BAND),
    "attention with a bias": lambda x: attended(tokens(x), attn_mask=torch.zeros(24, 24).double().masked_fill(BAND, -torch.inf)),
    "attention by hand": lambda x: attended_by_hand(in_windows(x)).reshape(1, -1),
    "attention by hand, masked": lambda x: attended_by_hand(tokens(x), BAND),
    "attention by hand, −∞ added": lambda x: attended_by_hand(tokens(x), None, torch.zeros(24, 24).masked_fill(BAND, -torch.inf)),
    "attention of learned queries": lambda x: F.scaled_dot_product_attention(weights(1, 2, 3, 4), *heads(tokens(x))[1:]),
    "attention of groups of heads": lambda x: F.scaled_dot_product_attention(
        heads(tokens(x))[0], heads(tokens(x))[1][:, :1], heads(tokens(x))[2][:, :1], enable_gqa=True
    ),
    "attention of units": lambda x: (x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2),
    # sampling
    "sampled between cells": lambda x: F.grid_sample(x, GRID, align_corners=False),
    "sampled at corners": lambda x: F.grid_sample(x, GRID, align_corners=True, padding_mode="border"),
    "sampled at the nearest": lambda x: F.grid_sample(x, GRID, "nearest", align_corners=False),
    "a known turn": lambda x: F.grid_sample(
        x, F.affine_grid(weights(1, 2, 3) * 0.5, [1, 3, 5, 4], align_corners=False), align_corners=False
    ),
    "recurrent": lambda x: recurrent(nn.LSTM)(x.flatten(1, 2))[0],
    "recurrent from behind": lambda x: recurrent(nn.GRU, bidirectional=True)(x.flatten(1, 2))[0],
}  # fmt: skip


STEPS_UP = torch.arange(12) / 10

# What depends on more than perturbation finds: places that only other weights would send a point to, weights of other taps, both parts
# of a complex number, all of the boundaries between which a number lies.
LARGER: dict[str, Function] = {
    "the real part multiplied": lambda x: written_as_complex(x, lambda z, i: z.real.mul_(i.roll(2, 3))),
    "the imaginary part made zero": lambda x: written_as_complex(x, lambda z, _: z.imag.zero_()),
    "pairs of a complex number": lambda x: written_as_complex(x, lambda z, i: torch.view_as_real(z)[..., 0].add_(i.roll(2, 3))),
    "the imaginary part of a conjugate": lambda x: written_as_complex(x, lambda z, i: z.conj().imag.add_(i.roll(2, 3))),
    "complex numbers of pairs": lambda x: written(
        x,
        lambda r, i: [
            torch.view_as_complex(r.unflatten(3, (6, 2))).mul_(torch.view_as_complex(i.roll(1, 2).unflatten(3, (6, 2))))
        ],
    ),
    "as larger numbers": lambda x: written(x.float(), lambda r, _: [r.view(torch.float64).mul_(3)]),
    "buckets of the image": lambda x: torch.bucketize(x, x[0, 0, 3] / 20 + STEPS_UP),
    "known numbers in buckets of the image": lambda x: torch.bucketize(weights(1, 30), x[0, 0, 3] / 20 + STEPS_UP),
    "searched in each row": lambda x: torch.searchsorted(x / 20 + STEPS_UP, x.roll(1, 2)[..., :5].contiguous()),
    "a known number searched": lambda x: torch.searchsorted(x[0, 0, 3] / 20 + STEPS_UP, 0.5).reshape(1, 1),
    "searched in an order": lambda x: torch.searchsorted(x, x.roll(1, 2), sorter=x.argsort(3)),
    "spread with weights of a corner": lambda x: F.conv_transpose2d(x[..., 5:], x[:, :, :2, :2].reshape(3, 1, 2, 2), stride=2),
    "sampled where the image says": lambda x: F.grid_sample(
        F.avg_pool2d(x, 2), (x[:, :2, :4, :5].permute(0, 2, 3, 1) / 2).tanh(), align_corners=False
    ),
}


# What is known to be everything for want of a rule, and the names of the operators that have none.
NAMED: dict[str, tuple[Function, set[str]]] = {
    "an operator of one's own": (lambda x: written(x, add_moved), {"unitscope_tests::add_moved"}),
    "one that writes over zeros": (lambda x: written(torch.zeros_like(x), lambda r, _: add_moved(r, x)), {"unitscope_tests::add_moved"}),
    "one that writes into a list": (
        lambda x: written(x, lambda r, i: [add_to_all(torch.zeros_like(r), [r], i.roll(2, 3))]),
        {"unitscope_tests::add_to_all"},
    ),
    "one that writes where numbers overlap": (
        lambda x: written(x, lambda r, i: add_moved(r.as_strided((1, 1, 5, 4), (1, 1, 3, 1)), i[:, :1, :5, :4])),
        {"unitscope_tests::add_moved", "as_strided"},
    ),
    "copies of parts out": (
        lambda x: written_as_out(x, lambda o, i: torch.ops.aten.split_with_sizes_copy.out(i, [6, 6], 3, out=[o[..., :6], o[..., 6:]])),
        {"split_with_sizes_copy"},
    ),
}  # fmt: skip


def recurrent(kind: type[nn.Module], **how: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(12, 3, batch_first=True, **how).double()


class Kept(nn.Module):
    """A function as a module whose outputs are the units of one cell."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images).reshape(1, -1)


def boxes(function: Function, size: tuple[int, int] = SIZE) -> tuple[list[np.ndarray], set[str]]:
    """First and last-but-one row, and the same for columns, that each number of the output can see; operators without a rule."""
    mode, images = DependencyMode(), picture(0, size)
    with torch.no_grad(), mode:
        mode.start(images)
        planes = mode.bounds_of(Kept(function)(images))
    assert planes is not None
    found = ReceptiveFields.from_bounds(planes, *size)
    return [
        np.clip(bounds[:, :, 0, 0], 0, length) for bounds, length in zip((found.rows, found.columns), size, strict=True)
    ], mode.unknown_operators


def picture(seed: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def assert_bounds(function: Function, exact: bool = True) -> None:
    known, unknown = boxes(function)
    assert not unknown
    assert_moved(Kept(function), [picture(seed) for seed in range(3)], known, exact)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_an_operator_gives_depends_on_what_its_rule_says(name: str) -> None:
    assert_bounds(OPERATORS[name])


@pytest.mark.parametrize("name", LARGER)
def test_what_an_operator_depends_on_lies_in_its_box(name: str) -> None:
    assert_bounds(LARGER[name], exact=False)


@pytest.mark.parametrize("name", NAMED)
def test_what_an_operator_without_a_rule_writes_depends_on_everything(name: str) -> None:
    function, names = NAMED[name]
    known, unknown = boxes(function)
    assert unknown == names
    assert_moved(Kept(function), [picture(seed) for seed in range(3)], known, exact=False)


@pytest.mark.parametrize("name", [n for n in OPERATORS if n.startswith(("tril", "triu")) or n.endswith(" out")])
def test_following_an_operator_leaves_what_it_writes_as_it_is(name: str) -> None:
    images = picture(0)
    plain = OPERATORS[name](images)
    with DependencyMode() as mode:
        mode.start(images)
        torch.testing.assert_close(OPERATORS[name](images), plain, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_rules_hold_whatever_the_default_type_is(kind: torch.dtype) -> None:
    for name in [*list(OPERATORS)[::5], "columns added up", "stretched by three", "by index", "attention by hand, masked"]:
        function = OPERATORS[name]
        expected = boxes(function)
        torch.set_default_dtype(kind)
        try:
            known = boxes(function)
        finally:
            torch.set_default_dtype(torch.float32)
        assert known[1] == expected[1], name
        for bounds, usual in zip(known[0], expected[0], strict=True):
            np.testing.assert_array_equal(bounds, usual, err_msg=name)


@pytest.mark.parametrize("name", ["cumsum over rows", "causal attention", "attention in a band", "columns added up", "linear", "einsum",
                                  "group norm", "similarities", "recurrent", "a known turn", "by a mask",
                                  "copied into a list", "tril out", "tril in place on a copy", "every second number as integers"])  # fmt: skip
def test_rules_hold_in_inference_mode(name: str) -> None:
    assert_bounds(torch.inference_mode()(OPERATORS[name]))


def shaped(function: Function) -> Function:
    """The same, cut or repeated to the shape of a small map, so that functions can follow each other."""

    def whole(maps: Tensor) -> Tensor:
        given = function(maps)
        rows = given.reshape(-1)
        count = 3 * SIZE[0] * SIZE[1]
        return rows.repeat(-(-count // len(rows)))[:count].reshape(1, 3, *SIZE)

    return whole


STEPS: dict[str, Function] = {
    "mixed units": lambda x: torch.einsum("nchw,dc->ndhw", x, weights(3, 3).abs()),
    "windows": lambda x: F.conv2d(x, weights(3, 3, 3, 2).abs(), padding=(1, 1))[..., :-1],
    "added": lambda x: x + x.roll(1, 3) / 3,
    **{name: shaped(OPERATORS[name]) for name in (
        "cumsum over rows", "logcumsumexp", "flip", "roll", "softmax", "layer norm", "triu", "columns added up", "windows of a tensor",
        "known places", "a known mask", "gather", "where", "masked_fill", "by index", "slice_scatter", "scatter_add", "addbmm",
        "attention in windows", "causal attention", "attention in a band", "attention by hand, masked", "sampled between cells",
        "Fourier along rows", "aminmax", "stretched along one axis", "repeated", "group norm",
    )},
}  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
def test_a_recurrent_layer_in_float32_depends_on_what_came_before(reverse: bool) -> None:
    """torch has a fused operator for it, in single precision alone; its fields are those of the layer taken apart."""
    torch.manual_seed(0)
    layer, mode, images = nn.LSTM(12, 3, bidirectional=reverse), DependencyMode(), torch.rand(1, 3, *SIZE)
    with torch.no_grad(), mode:
        mode.start(images)
        planes = mode.bounds_of(layer(images[0])[0].reshape(1, -1))
    assert not mode.unknown_operators
    apart, _ = boxes(lambda x: layer.double()(x[0])[0])
    for bounds, expected in zip(
        (ReceptiveFields.from_bounds(planes, *SIZE).rows, ReceptiveFields.from_bounds(planes, *SIZE).columns), apart, strict=True
    ):
        np.testing.assert_array_equal(np.broadcast_to(bounds[:, :, 0, 0], expected.shape), expected)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@drawn(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4), st.booleans())
def test_any_chain_of_operators_depends_on_what_the_rules_say(names: list[str], inference: bool) -> None:
    """All that moves a number lies in its box; whether the box is the smallest is tested one operator at a time."""

    def chain(images: Tensor) -> Tensor:
        with torch.inference_mode(inference):
            for name in names:
                images = STEPS[name](images)
        return images

    assert_bounds(chain, exact=False)
