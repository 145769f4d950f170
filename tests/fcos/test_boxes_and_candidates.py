import pytest
import torch

from meinst_d2.fcos.boxes import box_area, level_locations, ltrb_to_xyxy, xyxy_to_ltrb
from meinst_d2.fcos.select import select_candidates


def test_locations_are_row_major_and_offset_by_half_a_stride() -> None:
    fine, coarse = level_locations([(2, 3), (1, 1)], [8, 16])
    assert fine.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert coarse.tolist() == [[8, 8]]


def test_odd_strides_round_down() -> None:
    assert level_locations([(1, 2)], [5])[0].tolist() == [[2, 2], [7, 2]]


def test_distances_of_a_worked_example() -> None:
    location, box = torch.tensor([10.0, 20.0]), torch.tensor([4.0, 5.0, 30.0, 22.0])
    assert xyxy_to_ltrb(location, box).tolist() == [6, 15, 20, 2] and box_area(box).item() == 26 * 17


def test_distances_and_boxes_are_inverse() -> None:
    locations, boxes = torch.rand(50, 2) * 100, torch.rand(50, 4) * 100
    torch.testing.assert_close(ltrb_to_xyxy(locations, xyxy_to_ltrb(locations, boxes)), boxes)


def test_nothing_in_nothing_out() -> None:
    assert xyxy_to_ltrb(torch.zeros(0, 2), torch.zeros(0, 4)).shape == (0, 4)
    assert box_area(torch.zeros(0, 4)).shape == (0,)


def logit(p: float) -> float:
    return torch.logit(torch.tensor(p)).item()


def test_worked_example() -> None:
    cls = torch.tensor([[logit(0.9), logit(0.04)], [logit(0.5), logit(0.06)]])  # two classes, two locations
    found = select_candidates(cls, torch.tensor([logit(0.4), logit(0.1)]), score_thresh=0.05, topk=10)
    assert list(zip(found.location_idx.tolist(), found.class_idx.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1)]
    assert found.scores.tolist() == pytest.approx([0.36**0.5, 0.2**0.5, 0.006**0.5])


def test_the_threshold_is_strict_and_may_include_centerness() -> None:
    cls, ctr = torch.zeros(1, 3), torch.tensor([logit(0.2), logit(0.8), 50.0])
    assert len(select_candidates(cls, ctr, score_thresh=0.5, topk=9).scores) == 0
    found = select_candidates(cls, ctr, score_thresh=0.3, topk=9, thresh_with_centerness=True)
    assert found.location_idx.tolist() == [1, 2]


def test_candidates_come_by_location_then_class() -> None:
    found = select_candidates(torch.zeros(2, 3), torch.zeros(3), score_thresh=0.1, topk=9)
    assert found.location_idx.tolist() == [0, 0, 1, 1, 2, 2] and found.class_idx.tolist() == [0, 1] * 3


def test_the_cap_keeps_the_highest_products() -> None:
    torch.manual_seed(0)
    cls, ctr = torch.randn(5, 40), torch.randn(40)
    found = select_candidates(cls, ctr, score_thresh=0.05, topk=7)
    product = (cls.sigmoid() * ctr.sigmoid())[cls.sigmoid() > 0.05]
    torch.testing.assert_close(found.scores.square().sort().values, product.sort().values[-7:])
    assert torch.equal(found.scores, (cls.sigmoid() * ctr.sigmoid())[found.class_idx, found.location_idx].sqrt())


def test_nothing_above_the_threshold_and_no_locations() -> None:
    for size in (0, 4):
        found = select_candidates(torch.full((3, size), -9.0), torch.zeros(size), score_thresh=0.05, topk=5)
        assert found.scores.shape == found.location_idx.shape == found.class_idx.shape == (0,)
