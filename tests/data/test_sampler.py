from collections import Counter
from itertools import islice

import numpy as np
import pytest

from meinst_d2.data.loader import TrainingBatches

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
