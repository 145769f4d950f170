import random
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from meinst_d2.data.datasets import register_shapes
from meinst_d2.data.loader import TrainingBatches, build_train_loader, seeded
from meinst_d2.data.shapes import ShapesConfig, generate
from tests.models import tiny_cfg


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 11, "val": 2}, ShapesConfig(height=48, width=64, max_side=40, empty=0.3))
    register_shapes(root)


def batches(count: int, start: int = 0, **overrides: Any) -> list[list[dict[str, Any]]]:
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", (48, 64), "SOLVER.IMS_PER_BATCH", 3)
    cfg.merge_from_list([x for item in overrides.items() for x in item])
    loader = build_train_loader(cfg)
    loader.seek(start)
    return list(islice(loader, count))


def same(a: list[list[dict[str, Any]]], b: list[list[dict[str, Any]]]) -> bool:
    return all(
        torch.equal(x["image"], y["image"])
        and torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        and torch.equal(x["instances"].gt_mask_templates, y["instances"].gt_mask_templates)
        for batch_a, batch_b in zip(a, b, strict=True)
        for x, y in zip(batch_a, batch_b, strict=True)
    )


AUGMENTED = {
    "INPUT.SCALE_JITTER.ENABLED": True,
    "INPUT.SCALE_JITTER.SIZE": (48, 64),
    "INPUT.COLOR_JITTER.BRIGHTNESS": 0.4,
    "INPUT.COLOR_JITTER.SATURATION": 0.4,
    "INPUT.COPY_PASTE.PROB": 0.5,
}


@pytest.mark.parametrize("augmentation", [{}, AUGMENTED], ids=["flips", "everything"])
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_samples(workers: int, augmentation: dict[str, Any]) -> None:
    assert same(batches(9, **augmentation), batches(9, **augmentation, **{"DATALOADER.NUM_WORKERS": workers}))


def test_large_scale_jitter_colours_and_pasted_objects() -> None:
    plain = [sample for batch in batches(9) for sample in batch]
    changed = [sample for batch in batches(9, **AUGMENTED) for sample in batch]
    sizes = {tuple(sample["image"].shape[1:]) for sample in changed}
    assert len(sizes) > 5 and all(height <= 48 and width <= 64 for height, width in sizes)
    known = {sample["image_id"]: len(sample["instances"]) for sample in plain}
    assert any(len(sample["instances"]) > known.get(sample["image_id"], 99) for sample in changed)
    for sample in changed:
        instances = sample["instances"]
        assert (instances.gt_boxes.tensor[:, 2:] > instances.gt_boxes.tensor[:, :2]).all()
        assert instances.gt_mask_templates.any(dim=(1, 2)).all()


def test_samples_follow_from_the_seed_and_the_position() -> None:
    assert same(batches(9)[5:], batches(4, start=5, **{"DATALOADER.NUM_WORKERS": 2}))
    assert not same(batches(3), batches(3, SEED=1))


def test_randomness_of_loading_is_its_own() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches(2)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])

    def draw(*entropy: int) -> tuple[float, float, float]:
        with seeded(*entropy):
            return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(1, 2) == draw(1, 2) != draw(2, 1)


def test_images_without_objects_and_rare_ones_are_chosen() -> None:
    counts = [len(x["instances"]) for batch in batches(11) for x in batch]
    assert 0 in counts
    filtered = batches(11, **{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": True})
    assert all(len(x["instances"]) for batch in filtered for x in batch)
    rare = {"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD": 0.9}
    assert len(batches(3, **rare, **{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": True})) == 3
    with pytest.raises(ValueError, match="SAMPLER_TRAIN = 'X' is none of TrainingSampler, RepeatFactor"):
        batches(1, **{"DATALOADER.SAMPLER_TRAIN": "X"})


GROUPS = np.arange(23) % 3 // 2  # 7 of group 1, 16 of group 0


def take(count: int, start: int = 0, groups: np.ndarray = GROUPS, **options: object) -> list:
    batches = TrainingBatches(**({"groups": groups, "batch_size": 4, "seed": 5} | options))
    batches.start = start
    return list(islice(batches, count))


def test_batches_follow_from_the_seed_and_the_position() -> None:
    assert take(20) == take(20)
    assert take(20) != take(20, seed=6)
    whole = take(40)
    for start in (0, 1, 5, 6, 17, 39):
        assert take(40 - start, start) == whole[start:]
    assert [position for batch in take(5) for _, position in batch] == list(range(20))
    assert all(len({GROUPS[index] for index, _ in batch}) == 1 for batch in take(50))


def test_how_often_images_are_seen() -> None:
    seen = Counter(index for batch in take(23 * 10) for index, _ in batch)
    assert set(seen) == set(range(23))
    assert max(seen.values()) - min(seen.values()) <= 2
    batch = take(3, groups=np.zeros(3, int))
    assert all(len(b) == 4 for b in batch) and {i for b in batch for i, _ in b} == {0, 1, 2}
    factors = np.ones(23)
    factors[0], factors[1] = 3.0, 1.5
    seen = Counter(index for batch in take(2000, repeat_factors=factors) for index, _ in batch)
    ordinary = np.mean([seen[i] for i in range(2, 23)])
    assert seen[0] / ordinary == pytest.approx(3, rel=0.05)
    assert seen[1] / ordinary == pytest.approx(1.5, rel=0.1)


def test_processes_share_the_batch_of_one() -> None:
    alone = take(20)
    halves = [take(20, rank=rank, world_size=2) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == alone
    with pytest.raises(ValueError, match="IMS_PER_BATCH = 4 cannot be shared by 3 processes"):
        take(1, world_size=3)
    with pytest.raises(ValueError, match="no images"):
        take(1, groups=np.zeros(0, int))
