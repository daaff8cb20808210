"""What the outputs of each operator depend on: the table of rules. An operator without a rule takes everything, and is named."""

import torch

from unitscope.receptive_fields.elementwise import (
    as_strided,
    constant,
    gated_linear_unit,
    movement,
    movement_into_zeros,
    overwrite,
    per_channel,
    pointwise,
    reshape,
)
from unitscope.receptive_fields.indexing import (
    addition,
    concatenation,
    embedding,
    gathering,
    masking,
    scattering,
    searching,
    selection,
)
from unitscope.receptive_fields.operators import DependencyRule, OperatorCall
from unitscope.receptive_fields.products import (
    MATRIX_PRODUCTS,
    attention,
    distances,
    linear_solve,
    matrix_function,
    matrix_product,
    multi_head_attention,
    recurrence,
    trilinear,
)
from unitscope.receptive_fields.reductions import (
    accumulation,
    batch_norm,
    complex_of_pairs,
    fourier_transform,
    group_norm,
    layer_norm,
    pairs_of_complex,
    reduction,
    softmax,
)
from unitscope.receptive_fields.windows import (
    adaptive_pooling,
    constant_padding,
    convolution,
    deformable_convolution,
    folding,
    grid_sampling,
    interpolation,
    mirrored_padding,
    pooling,
    unfolding,
)


def rule_for(op: OperatorCall) -> DependencyRule | None:
    """The rule of an operator; None where it has none."""
    if op.name in RULES:
        return RULES[op.name]
    return pointwise if torch.Tag.pointwise in op.func.tags or op.name in POINTWISE else None


POINTWISE = {
    "hardswish", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "_prelu_kernel", "dropout", "native_dropout", "bernoulli",
    "log_sigmoid_forward", "rrelu_with_noise", "quantize_per_tensor", "dequantize", "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "complex", "polar", "_conj", "_neg_view", "resolve_conj", "resolve_neg", "view_as",
}  # fmt: skip
RULES: dict[str, DependencyRule] = {
    **dict.fromkeys(("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "miopen_convolution"), convolution),
    "torchvision::deform_conv2d": deformable_convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "mkldnn_max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d",
                     "max_pool3d_with_indices", "avg_pool3d"), pooling),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool1d",
                     "adaptive_max_pool1d", "_adaptive_avg_pool3d", "adaptive_max_pool3d"), adaptive_pooling),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                     "cudnn_batch_norm", "miopen_batch_norm"), batch_norm),
    "fake_quantize_per_channel_affine_cachemask": per_channel,
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), layer_norm),
    "native_group_norm": group_norm,
    **dict.fromkeys(MATRIX_PRODUCTS, matrix_product),
    **dict.fromkeys(("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
                     "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
                     "_scaled_dot_product_attention_math_for_mps", "_scaled_dot_product_fused_attention_overrideable"), attention),
    **dict.fromkeys(("_native_multi_head_attention", "_transformer_encoder_layer_fwd"), multi_head_attention),
    "mkldnn_rnn_layer": recurrence,
    "_trilinear": trilinear,
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), distances),
    "_linalg_solve_ex": linear_solve,
    **dict.fromkeys(("linalg_inv_ex", "_linalg_det", "_linalg_slogdet", "_linalg_svd", "_linalg_eigh", "linalg_qr",
                     "linalg_cholesky_ex", "linalg_matrix_exp", "linalg_eig"), matrix_function),
    **dict.fromkeys(("cat", "stack"), concatenation),
    "constant_pad_nd": constant_padding,
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
                     "replication_pad3d"), mirrored_padding),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
                     "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
                     "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
                     "_upsample_lanczos2d_aa"), interpolation),
    "grid_sampler_2d": grid_sampling,
    "im2col": unfolding,
    "col2im": folding,
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape"), reshape),
    **dict.fromkeys(("permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "slice", "select", "split", "split_with_sizes",
                     "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "unbind", "flip", "rot90", "roll", "repeat",
                     "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "unfold", "diagonal"), movement),
    **dict.fromkeys(("tril", "triu", "diag_embed"), movement_into_zeros),
    **dict.fromkeys(("index", "index_select", "gather", "take", "masked_select"), gathering),
    "embedding": embedding,
    **dict.fromkeys(("index_put", "_index_put_impl", "scatter", "scatter_add", "scatter_reduce", "index_copy", "index_add",
                     "index_fill", "masked_scatter", "slice_scatter", "select_scatter", "diagonal_scatter"), scattering),
    **dict.fromkeys(("bucketize", "searchsorted"), searching),
    "where": selection,
    "masked_fill": masking,
    **dict.fromkeys(("add", "sub"), addition),
    "glu": gated_linear_unit,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "aminmax", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "norm",
                     "any", "all", "nansum", "count_nonzero", "linalg_vector_norm", "logsumexp", "argmax", "argmin", "topk", "sort",
                     "kthvalue", "mode", "median", "nanmedian"), reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), softmax),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), accumulation),
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), fourier_transform),
    "view_as_complex": complex_of_pairs,
    "view_as_real": pairs_of_complex,
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "zeros_like", "ones_like", "empty_like",
                     "full_like", "rand_like", "randn_like", "randint_like", "zero", "uniform", "normal", "exponential"), constant),
    **dict.fromkeys(("copy", "fill"), overwrite),
    "as_strided": as_strided,
}  # fmt: skip
