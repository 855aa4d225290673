"""The members as one OpenVINO graph: gray pixels as they are stored in, logits and raw maps out.

What a trained network computes with constants is folded into the convolutions beside it: division by 255, ImageNet's
mean and standard deviation with the copies of the gray channel, and the norms that follow a convolution. Average
pooling goes before a transition's 1 x 1 convolution: both are linear, and a quarter of the pixels is left. The values
stay the same but for rounding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from torch import nn

from mura_ray.model.densenet import AbnormalityNet

NUM_BLOCKS = 4


@torch.inference_mode()
def build_graph(networks: Sequence[AbnormalityNet], image_size: int) -> openvino.Model:
    """The graph of all members.

    Args:
        networks: the members, on the CPU, in evaluation mode.
        image_size: S, the side of the views.

    Returns:
        A model from uint8 [N, 1, S, S] to logits, float32 [N, M], and the members' raw maps, float32
        [N, M, S / 32, S / 32], for any N.
    """
    pixels = ops.parameter([-1, 1, image_size, image_size], dtype=np.uint8, name="pixels")
    gray = ops.convert(pixels, "f32")
    logits, maps = zip(*(_member(network, gray, image_size) for network in networks), strict=True)
    outputs = [ops.concat(list(logits), 1), ops.concat(list(maps), 1)]
    return openvino.Model(outputs, [pixels], "ensemble")  # pyright: ignore[reportGeneralTypeIssues]


def _member(network: AbnormalityNet, gray: Any, image_size: int) -> tuple[Any, Any]:
    """Logits [N, 1] and raw maps [N, 1, h, w] of one member, for gray values of 0 to 255."""
    body: Any = network.features
    x = ops.relu(_first_convolution(network, gray, image_size))
    x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3], "floor", "explicit").output(0)
    for block in range(1, NUM_BLOCKS + 1):
        for layer in body.get_submodule(f"denseblock{block}").children():
            x = ops.concat([x, _dense_layer(layer, x)], 1)
        if block < NUM_BLOCKS:
            transition: Any = body.get_submodule(f"transition{block}")
            x = ops.avg_pool(_norm_relu(x, transition.norm), [2, 2], [0, 0], [0, 0], [2, 2], False)
            x = _convolution(x, transition.conv.weight)
    maps = _convolution(_norm_relu(x, body.norm5), network.classifier.weight[:, :, None, None])
    mean = ops.reduce_mean(maps, ops.constant(np.array([2, 3])), False)
    return ops.add(mean, _constant(network.classifier.bias[None])), maps


def _first_convolution(network: AbnormalityNet, gray: Any, image_size: int) -> Any:
    """Normalisation to three channels, `conv0` and `norm0` as one convolution of one channel.

    What it adds is a map and not a number a channel: the zeros that pad the border stand for the mean gray, not black.
    """
    body: Any = network.features
    scale, _ = _affine(body.norm0)
    weight = (body.conv0.weight / network.std).sum(dim=1, keepdim=True) / 255
    black = (torch.zeros(1, 3, image_size, image_size) - network.mean) / network.std
    return ops.add(_convolution(gray, weight * _channels(scale, 0), 2, 3), _constant(body.norm0(body.conv0(black))))


def _dense_layer(layer: Any, x: Any) -> Any:
    scale, shift = _affine(layer.norm2)
    narrow = _convolution(_norm_relu(x, layer.norm1), layer.conv1.weight * _channels(scale, 0))
    return _convolution(ops.relu(ops.add(narrow, _constant(_channels(shift, 1)))), layer.conv2.weight, 1, 1)


def _norm_relu(x: Any, norm: nn.BatchNorm2d) -> Any:
    scale, shift = _affine(norm)
    return ops.relu(ops.add(ops.multiply(x, _constant(_channels(scale, 1))), _constant(_channels(shift, 1))))


def _affine(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """A norm in evaluation mode as scale and shift, [K] each."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _channels(values: torch.Tensor, dim: int) -> torch.Tensor:
    """[K] as [..., K, ...] of four dimensions, K in place `dim`."""
    return values.reshape([-1 if place == dim else 1 for place in range(4)])


def _convolution(x: Any, weight: torch.Tensor, stride: int = 1, padding: int = 0) -> Any:
    return ops.convolution(x, _constant(weight), [stride] * 2, [padding] * 2, [padding] * 2, [1, 1])


def _constant(tensor: torch.Tensor) -> Any:
    return ops.constant(np.ascontiguousarray(tensor.float().numpy()))
