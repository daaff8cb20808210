"""The networks of `network_coverage.py`: the smallest of each family of timm, torchvision, transformers, open_clip and segmentation_models_pytorch.

Those of transformers are made from configurations, with fewer and narrower layers than the published ones where that is simple.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

TORCHVISION = {
    "classification": [
        "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t",
        "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
        "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
    ],
    "segmentation": ["deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"],
    "detection": [
        "fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
    ],
    "quantisable": ["quantized_mobilenet_v2", "quantized_resnet18", "quantized_googlenet"],
}  # fmt: skip

OPEN_CLIP = [
    "RN50", "ViT-S-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP2", "coca_ViT-B-32", "convnext_tiny", "MobileCLIP-S1", "MobileCLIP2-S0",
    "PE-Core-T-16-384", "ViTamin-S", "swin_base_patch4_window7_224", "EVA02-B-16",
]  # fmt: skip

SEGMENTATION = [
    "DPT",
    "DeepLabV3Plus",
    "FPN",
    "Linknet",
    "MAnet",
    "PAN",
    "PSPNet",
    "Segformer",
    "UPerNet",
    "Unet",
    "UnetPlusPlus",
]

VIT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
SWIN = {"embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 4, 8]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Aimv2Vision": VIT,
    "Beit": VIT,
    "Bit": STAGES | {"embedding_size": 16, "num_groups": 8},
    "CLIPVision": VIT,
    "ChineseCLIPVision": VIT,
    "ConvNext": STAGES,
    "ConvNextV2": STAGES,
    "Cvt": {},
    "DINOv3ConvNext": STAGES,
    "DINOv3ViT": VIT,
    "DPT": VIT,
    "Data2VecVision": VIT,
    "DeiT": VIT,
    "Detr": {},
    "Dinov2": VIT,
    "Dinov2WithRegisters": VIT,
    "DonutSwin": SWIN,
    "EfficientNet": {"image_size": 224, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "FocalNet": {"embed_dim": 24, "depths": [1, 1, 2, 1]},
    "HGNetV2": {},
    "Hiera": {"embed_dim": 24, "depths": [1, 2, 2, 1]},
    "IJepa": VIT,
    "InternVLVision": VIT | {"image_size": [224, 224]},
    "Levit": {},
    "Mask2Former": {},
    "MaskFormerSwin": SWIN,
    "MobileNetV1": {"depth_multiplier": 0.5},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "MobileViT": {},
    "MobileViTV2": {"width_multiplier": 0.5},
    "PPLCNet": {},
    "Perceiver": {},
    "PoolFormer": STAGES,
    "Pvt": {},
    "PvtV2": {},
    "RTDetr": {},
    "RegNet": STAGES | {"groups_width": 16, "embedding_size": 16},
    "ResNet": STAGES | {"embedding_size": 16},
    "SamVision": VIT | {"image_size": 224, "global_attn_indexes": [2], "window_size": 4},
    "Segformer": {},
    "Siglip2Vision": VIT,
    "SiglipVision": VIT,
    "SwiftFormer": {},
    "Swin": SWIN,
    "Swin2SR": {},
    "Swinv2": SWIN,
    "TextNet": {},
    "ViT": VIT,
    "ViTMSN": VIT,
    "Yolos": VIT | {"image_size": [224, 224]},
}
"""By the name of the configuration's class, what differs from its defaults."""


def parameter_count(name: str) -> int:
    """Of a network of timm, built without memory for its weights."""
    import timm

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    except Exception:
        return 1 << 60


def timm_models(known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The smallest network of every module of timm that makes image classifiers; `known` are those of families that are done."""
    import timm

    for module in timm.list_modules():
        if f"timm {module}" in known:
            yield f"timm {module}", known[f"timm {module}"]
        elif names := timm.list_models(module=module):
            yield f"timm {module}", f"timm:{min(names, key=parameter_count)}"


def write_configuration(name: str, folder: Path) -> Path:
    """The folder of a network of transformers, with its configuration and no weights."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    config = getattr(transformers, f"{name}Config")(**TRANSFORMERS[name])
    classifiers = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type, ())
    classifier = classifiers if isinstance(classifiers, str) else next(iter(classifiers), None)
    config.architectures = [classifier or f"{name}Model"]
    config.save_pretrained(folder)
    return folder


def segmentation_model(name: str) -> nn.Module:
    """A network of segmentation_models_pytorch, with the smallest of its encoders that it takes."""
    import segmentation_models_pytorch as smp

    encoder = "mit_b0" if name == "Segformer" else "tu-vit_tiny_patch16_224" if name == "DPT" else "resnet18"
    network: nn.Module = getattr(smp, name)(encoder_name=encoder, encoder_weights=None)
    return network


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """The function that builds a network of segmentation_models_pytorch, by its class's name, so that a model string can name it."""
    if name not in SEGMENTATION:
        raise AttributeError(name)
    return partial(segmentation_model, name)


def all_models(known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Family and model string of every network; that of transformers names a configuration of `TRANSFORMERS` in place of a folder."""
    for kind, names in TORCHVISION.items():
        for name in names:
            yield f"torchvision {kind}", f"torchvision:{name}"
    for name in TRANSFORMERS:
        yield "transformers", f"transformers:{name}"
    for name in OPEN_CLIP:
        yield "open_clip", f"open_clip:{name}/"
    for name in SEGMENTATION:
        yield "segmentation_models_pytorch", f"{Path(__file__).name}:{name}"
    yield from timm_models(known)
