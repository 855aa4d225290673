"""Class activation maps (paper, section 5): where in a view the network sees abnormality, in logits."""

import numpy as np
import torch
import torch.nn.functional as F


def class_activation_map(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """M(X) = sum over k of w_k f_k(X) (paper, section 5).

    Taken from the features after the final norm and ReLU, mean(M) + bias is the logit; before the ReLU it is not.

    Args:
        features: float [N, K, h, w], what the global average is taken of.
        weight: float [K], the classifier's.

    Returns:
        float [N, h, w], in logits: what each cell would give, bias aside, if the whole view looked like it.
    """
    return torch.einsum("nkhw,k->nhw", features, weight)


def upscale_map(cam: np.ndarray, width: int, height: int) -> np.ndarray:
    """Brings a map to a view's own pixels, bilinearly (`align_corners=False`: cells are areas, not points).

    Args:
        cam: float32 [h, w].
        width: of the result, in pixels.
        height: of the result, in pixels.

    Returns:
        float32 [height, width], in the map's own unit.
    """
    cells = torch.from_numpy(np.ascontiguousarray(cam, dtype=np.float32))[None, None]
    return F.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
