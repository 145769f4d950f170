import torch

from meinst_d2.fcos.boxes import box_area, level_locations, ltrb_to_xyxy, xyxy_to_ltrb


def test_locations_are_row_major_and_offset_by_half_a_stride() -> None:
    fine, coarse = level_locations([(2, 3), (1, 1)], [8, 16])
    assert fine.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert coarse.tolist() == [[8, 8]]


def test_odd_strides_round_down() -> None:
    assert level_locations([(1, 2)], [5])[0].tolist() == [[2, 2], [7, 2]]


def test_distances_of_a_worked_example() -> None:
    location, box = torch.tensor([10.0, 20.0]), torch.tensor([4.0, 5.0, 30.0, 22.0])
    assert xyxy_to_ltrb(location, box).tolist() == [6, 15, 20, 2]
    assert box_area(box).item() == 26 * 17


def test_distances_and_boxes_are_inverse() -> None:
    locations, boxes = torch.rand(50, 2) * 100, torch.rand(50, 4) * 100
    torch.testing.assert_close(ltrb_to_xyxy(locations, xyxy_to_ltrb(locations, boxes)), boxes)


def test_nothing_in_nothing_out() -> None:
    assert xyxy_to_ltrb(torch.zeros(0, 2), torch.zeros(0, 4)).shape == (0, 4)
    assert box_area(torch.zeros(0, 4)).shape == (0,)
