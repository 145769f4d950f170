"""Choosing the candidates of one feature level at test time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """(location, class) pairs worth decoding, by location, then class, unless a cap chose among them. C of them.

    Attributes:
        location_idx: (C,) int64, within the level.
        class_idx: (C,) int64.
        scores: (C,) float32, the geometric mean of class probability and centerness.
    """

    location_idx: Tensor
    class_idx: Tensor
    scores: Tensor


@torch.no_grad()
def select_candidates(
    cls_logits: Tensor,
    centerness_logits: Tensor,
    *,
    score_thresh: float,
    topk: int,
    thresh_with_centerness: bool = False,
) -> Candidates:
    """Pairs above the threshold, at most ``topk`` of them: those with the highest probability times centerness.

    Args:
        cls_logits: (K, R) of one level of one image.
        centerness_logits: (R,). What is not a number, after half precision overflowed, counts as a score of 0.
        score_thresh: a pair is kept when its class probability (or the product with centerness) exceeds this.
        topk: cap on the number of pairs.
        thresh_with_centerness: compare the product instead of the class probability.
    """
    probability = cls_logits.float().sigmoid()  # (K, R)
    product = probability * centerness_logits.float().sigmoid().nan_to_num(0.0)
    above = (product if thresh_with_centerness else probability) > score_thresh
    location_idx, class_idx = above.T.nonzero(as_tuple=True)
    ranking = product[class_idx, location_idx]  # (C,)
    if len(ranking) > topk:
        ranking, kept = ranking.topk(topk, sorted=False)
        class_idx, location_idx = class_idx[kept], location_idx[kept]
    return Candidates(location_idx, class_idx, ranking.sqrt())
