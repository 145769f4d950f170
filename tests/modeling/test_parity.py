"""The published implementation as the oracle: losses, gradients, detections one by one, pasted masks.

Config and weights come through the importer, as they do for the owner of a published checkpoint.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from meinst_d2.model_zoo.adelaidet import import_checkpoint
from tests.models import build_from
from tests.parity_cases import FOLDER, Case
from tests.published_configs import write_published_config

SHARED = Path(os.environ.get("MEINST_TEST_DATA", FOLDER.parents[2] / "shared/data")).parent / "parity/cases"
REAL = ("none_s0", "dcnv1_s0", "gcn_s0", "lom_s0", "nosigmoid_s0")


def cases() -> list[Path]:
    return [*sorted(FOLDER.glob("*_s0.npz")), *(SHARED / f"{name}.npz" for name in REAL)]


@pytest.fixture(scope="module", params=cases(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def case(request: pytest.FixtureRequest) -> Case:
    if not request.param.is_file():
        pytest.skip(f"no case {request.param}")
    return Case(request.param)


@pytest.fixture(scope="module")
def model(case: Case) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(case.weights(), folder / "theirs.pth")
        config = write_published_config(folder, case.meta["config"]["yaml"], case.meta["config"]["opts"])
        import_checkpoint(config, folder / "theirs.pth", folder / "ours")
        overrides = ("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01), "MODEL.WEIGHTS", str(folder / "ours/model.pth"))
        return build_from(folder / "ours/config.yaml", *overrides)


def test_losses_and_gradients(case: Case, model: torch.nn.Module) -> None:
    expected = case.meta["train_const"]
    model.train()
    model.zero_grad()
    losses = model(case.batch())
    theirs = {"cls": "cls", "box": "loc", "centerness": "ctr", "mask": "mask"}
    assert set(losses) == {f"loss_{name}" for name in theirs}
    for ours, name in theirs.items():
        assert losses[f"loss_{ours}"].item() == pytest.approx(expected["losses"][f"loss_MEInst_{name}"], rel=1e-4)
    sum(losses.values()).backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    renamed = {
        name.replace("MEInst_head.ctrness", "head.centerness").replace("MEInst_head", "head"): norm
        for name, norm in expected["grad_norm"].items()
    }
    assert set(norms) == set(renamed)
    for name, norm in renamed.items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name


def test_positives_and_their_targets(case: Case, model: torch.nn.Module) -> None:
    from meinst_d2.fcos.assign import assign_batch
    from meinst_d2.modeling.targets import mask_templates

    batch = case.batch()
    height, width = (max(x["image"].shape[i] for x in batch) for i in (1, 2))
    height, width = (-(-side // 32) * 32 for side in (height, width))
    generator = model.proposal_generator
    strides = generator.assignment_rule.strides
    shapes = [(-(-height // s), -(-width // s)) for s in strides]
    instances = [x["instances"] for x in batch]
    positives = assign_batch([x.gt_boxes.tensor for x in instances], shapes, generator.assignment_rule)
    # The case orders by level, image, location; ours by image, location.
    level = torch.bucketize(positives.location_idx, torch.tensor([h * w for h, w in shapes]).cumsum(0), right=True)
    order = torch.from_numpy(np.lexsort((positives.location_idx, positives.image_idx, level)))
    assert [int((level == i).sum()) for i in range(len(strides))] == case.meta["num_positives"]
    np.testing.assert_allclose(positives.ltrb[order], case.arrays["reg_targets_positive"], atol=1e-5)
    labels = torch.cat([x.gt_classes for x in instances])[positives.gt_idx[order]]
    assert labels.tolist() == [k for k in case.arrays["labels"].tolist() if k != case.meta["num_classes"]]
    templates = mask_templates(instances, 28)[positives.gt_idx[order]].reshape(len(order), -1).numpy()
    assert (templates == np.unpackbits(case.arrays["mask_targets"])[: templates.size].reshape(templates.shape)).all()


def test_detections_one_by_one_in_order(case: Case, model: torch.nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        outputs = model(case.batch())
    for i, output in enumerate(outputs):
        found = output["instances"]
        assert found.pred_classes.tolist() == case.arrays[f"img{i}_post_classes"].tolist()
        np.testing.assert_allclose(found.scores, case.arrays[f"img{i}_post_scores"], atol=1e-5)
        np.testing.assert_allclose(found.pred_boxes.tensor, case.arrays[f"img{i}_post_boxes"], atol=1e-2)
        assert (found.pred_masks.numpy() != case.pasted_masks(i)).mean() <= 1e-5
