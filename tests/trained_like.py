"""Networks that compute like trained ones, for tests of how they are computed: random ones give all views one logit."""

import numpy as np
import torch

from mura_ray.model.densenet import AbnormalityNet, build_network

SIZE = 64


def radiographs(number: int, seed: int) -> np.ndarray:
    """Smooth pictures of unequal brightness, uint8 [N, 1, S, S]; the first two are black and white."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 1, 5, 5, generator=random) * torch.rand(number, 1, 1, 1, generator=random)
    fine = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    fine[0], fine[1] = 0, 1
    return (fine * 255).to(torch.uint8).numpy()


def trained_like(seed: int) -> AbnormalityNet:
    """A network whose norms fit what they see and are unequal, and whose logits spread over some units."""
    network = build_network(None, seed)
    random = torch.Generator().manual_seed(seed)
    views = torch.from_numpy(radiographs(16, seed)).float() / 255
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.momentum = None
                norm.weight.copy_(0.5 + torch.rand(len(norm.weight), generator=random))
                norm.bias.copy_(torch.randn(len(norm.bias), generator=random) / 4)
        network.train()(views)
        network.eval()
        logits = network(views)
        network.classifier.weight.mul_(2 / logits.std())
        network.classifier.bias.sub_(network(views).mean())
    return network
