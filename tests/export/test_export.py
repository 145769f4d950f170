"""The exported model detects what the model detects, whatever the head, the batch and the sizes."""

import importlib.util
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image
from torch.torch_version import TorchVersion

from meinst_d2.export import CheckError, DetectionGraph, ExportSource, check_batches, export_model, make_source
from meinst_d2.export.write import FORMATS, LEAST_TORCH, OPSET, Runner, check, pad_batch
from meinst_d2.masks import paste_masks
from meinst_d2.model_zoo.trained import TrainedModel
from tests.conftest import ROOT, blob_masks
from tests.models import load_cfg, tiny_cfg, tiny_model

OLD = TorchVersion(torch.__version__) < LEAST_TORCH
needs_torch = pytest.mark.skipif(OLD, reason=f"exports need torch {'.'.join(map(str, LEAST_TORCH))}")
needs_onnx = pytest.mark.skipif(
    OLD or any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime, and the torch of needs_torch",
)
NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
HEADS = {
    "plain": (),
    "deform": ("MODEL.MEINST.DEFORM_CONV", "last", "MODEL.MEINST.MASK_PASTE_BOX", "clipped"),
    "deform_modulated": ("MODEL.MEINST.DEFORM_CONV", "last", "MODEL.MEINST.DEFORM_MODULATED", True),
    "five_levels": (
        *("MODEL.MEINST.MASK_PREDICTOR", "large_kernel"),
        *("MODEL.MEINST.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"], "MODEL.MEINST.TOP_LEVELS", 2),
        *("MODEL.MEINST.SIZES_OF_INTEREST", [32, 64, 128, 256], "MODEL.MEINST.NORM", "none"),
    ),
    "class_pca": ("MODEL.MEINST.ENCODER", "ClassPCAEncoder", "MODEL.MEINST.PRE_NMS_TOPK_TEST", 50),
    "refined": (
        *("MODEL.MEINST.REFINE.ENABLED", True, "MODEL.MEINST.REFINE.POOLER_RESOLUTION", 4),
        *("MODEL.MEINST.REFINE.CLASSIFY", True, "MODEL.MEINST.REFINE.DETAIL_FEATURE", "res2"),
        *("MODEL.MEINST.REFINE.OUTPUT_SIZE", 8),
        *("MODEL.MEINST.REFINE.MEAN_BOX", True, "MODEL.MEINST.REFINE.MASKNESS", True),
    ),
    "no_masks": ("MODEL.MASK_ON", False, "MODEL.MEINST.THRESH_WITH_CENTERNESS", True),
    "no_nms": ("MODEL.MEINST.NMS_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 30),
}


def tiny_source(*overrides: Any) -> ExportSource:
    """A tiny model whose untrained head sees objects everywhere."""
    model = tiny_model(*overrides).eval()
    generator = model.proposal_generator
    generator.head.cls_logits.bias.data.fill_(-2.5)
    if generator.refinement is not None:
        generator.head.bbox_pred.weight.data.mul_(12)  # boxes for every level
        torch.nn.init.normal_(generator.refinement.predictor.weight, std=0.3)  # that matter
    return make_source(as_trained(model, tiny_cfg(*overrides)))


def as_trained(model: torch.nn.Module, cfg: CfgNode) -> TrainedModel:
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    return TrainedModel(model, resize, cfg.INPUT.FORMAT, list(NAMES), "")


def images(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)) for size in sizes]


BATCHES = [images((64, 64)), images((96, 128), (90, 100), seed=1), images((33, 470), (1, 1), (64, 64), seed=2)]


@pytest.mark.parametrize("head", HEADS)
def test_the_graph_is_the_detector(head: str) -> None:
    source = tiny_source(*HEADS[head])
    graph = DetectionGraph(source.model)
    assert check(source.model, runner_of(graph), BATCHES).detections > 40


def runner_of(graph: DetectionGraph) -> Runner:
    @torch.no_grad()
    def run(batch: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in graph(torch.from_numpy(batch), torch.from_numpy(sizes))]

    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plain head's model.onnx; exporting takes seconds."""
    folder = tmp_path_factory.mktemp("plain")
    source = tiny_source("INPUT.MIN_SIZE_TEST", 96)
    result = export_model(source, folder / "model.onnx", BATCHES)
    assert result.images == 6 and result.detections > 40
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    return folder


@needs_onnx
def test_metadata_travels_and_nothing_may_be_detected(plain: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(plain / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert about == tiny_source("INPUT.MIN_SIZE_TEST", 96).metadata
    assert json.loads(about["class_names"]) == list(NAMES)
    batch, _ = pad_batch(images((64, 64), (64, 64)), 32)
    # No pixel of the image is left: every box is clipped to nothing.
    outputs = session.run(None, {"images": batch, "image_sizes": np.zeros((2, 2), np.int64)})
    assert [output.shape[0] for output in outputs] == [0] * 6 and outputs[3].shape == (0, 28, 28)


@needs_onnx
def test_onnx_of_five_levels_with_deformable_convolutions_detects_the_same(tmp_path: Path) -> None:
    source = tiny_source(*HEADS["deform"], *HEADS["five_levels"])
    result = export_model(source, tmp_path / "model.onnx", BATCHES)
    assert result.images == 6 and result.detections > 40


@needs_onnx
@pytest.mark.parametrize(
    ("file_format", "cap", "least", "classify"),
    [("onnx", 100, 200, True), ("exported_program", 1, 2, True), ("onnx", 100, 200, False)],
)
def test_refined_masks_are_the_same_of_many_of_one_and_of_none(
    tmp_path: Path, file_format: str, cap: int, least: int, classify: bool
) -> None:
    options = ("TEST.DETECTIONS_PER_IMAGE", cap, "MODEL.MEINST.REFINE.CLASSIFY", classify)
    source = tiny_source(*HEADS["refined"], *options)
    run = FORMATS[file_format](DetectionGraph(source.model), tmp_path / "model", source.metadata, OPSET)
    assert check(source.model, run, BATCHES).detections >= least
    batch, sizes = pad_batch(images((64, 64), (64, 64)), 32)
    sizes[1] = 0  # no pixel of the image is left
    masks, image_index = run(batch, sizes)[3:5]
    assert len(masks) > 0 and image_index.max() == 0
    assert run(batch, np.zeros_like(sizes))[3].shape == (0, 8, 8)
    assert source.metadata["mask_size"] == "8"


@needs_torch
def test_nothing_is_written_that_is_not_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_source()
    monkeypatch.setattr("meinst_d2.export.write.FORMATS", {"exported_program": lambda graph, *_: runner_of(graph)})
    source.model.proposal_generator.head.cls_logits.bias.data.fill_(-20.0)
    with pytest.raises(CheckError, match="detects nothing in the images of the check .1."):
        export_model(source, tmp_path / "model.pt2", BATCHES[:1], "exported_program")
    monkeypatch.setattr("meinst_d2.export.write.FORMATS", {"exported_program": another_model})
    with pytest.raises(CheckError, match=r"differs in (boxes|scores)|finds \d+ objects and the model"):
        export_model(tiny_source(), tmp_path / "model.pt2", BATCHES[:1], "exported_program")
    assert not list(tmp_path.iterdir())


def another_model(*_: Any) -> Runner:
    """A runner of a model with other weights."""
    other = tiny_source()
    with torch.no_grad():
        for parameter in other.model.proposal_generator.head.parameters():
            parameter.mul_(1.01)
    return runner_of(DetectionGraph(other.model))


BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
"""


def run_without(blocked: list[str], code: str, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == status, done.stderr
    return done


@needs_torch
def test_exported_program_needs_torch_and_torchvision_only(tmp_path: Path) -> None:
    source = tiny_source(*HEADS["deform"])
    result = export_model(source, tmp_path / "model.pt2", BATCHES, "exported_program")
    assert result.detections > 40
    code = """
import json, torch, torchvision
about = {"class_names": ""}
module = torch.export.load("model.pt2", extra_files=about).module()
boxes, scores, *_ = module(torch.rand(3, 3, 64, 96) * 255, torch.tensor([[64, 96]] * 3))
nothing = module(torch.rand(2, 3, 64, 64), torch.zeros(2, 2, dtype=torch.int64))
assert all(len(output) == 0 for output in nothing)
print(len(boxes), len(json.loads(about["class_names"])))
"""
    count, names = run_without(["detectron2", "meinst_d2"], code, tmp_path).stdout.split()
    assert int(count) > 0 and int(names) == len(NAMES)


def predict_deployed(folder: Path, *arguments: str, status: int = 0) -> tuple[str, str]:
    """What deploy/predict_onnx.py prints, in a folder with model.onnx."""
    code = f"""
import runpy
sys.argv = ["predict_onnx.py", "model.onnx", "--score-threshold", "0.01", *{list(arguments)!r}]
runpy.run_path({str(ROOT / "deploy/predict_onnx.py")!r}, run_name="__main__")
"""
    done = run_without(["torch", "torchvision", "detectron2", "meinst_d2", "cv2"], code, folder, status=status)
    return done.stdout, done.stderr


@pytest.fixture
def deployed(plain: Path, tmp_path: Path) -> Path:
    """A folder with model.onnx and a/x.png, b/X.jpg."""
    shutil.copy(plain / "model.onnx", tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a/x.png", "b/X.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(rng.integers(0, 256, (70, 110, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


@needs_onnx
def test_deployed_example_gives_every_image_a_picture_and_passes_over_broken_ones(deployed: Path) -> None:
    (deployed / "broken.png").write_bytes((deployed / "a/x.png").read_bytes()[:200])
    Image.new("1", (20000, 10000)).save(deployed / "huge.png")
    printed, errors = predict_deployed(deployed, "broken.png", "a/x.png", "huge.png", "b/X.jpg", "--output", "out")
    assert any(name in printed for name in NAMES)
    assert "the image broken.png cannot be read" in errors and "the image huge.png cannot be read" in errors
    assert sorted(path.name for path in (deployed / "out").iterdir()) == ["X-2.png", "x.png"]
    for name, picture in (("a/x.png", "x.png"), ("b/X.jpg", "X-2.png")):
        before = np.asarray(Image.open(deployed / name))
        assert (np.asarray(Image.open(deployed / "out" / picture)) != before).any()
    predict_deployed(deployed, "broken.png", "nowhere.png", "--output", "out", status=1)


@needs_onnx
def test_deployed_example_takes_the_upper_8_of_16_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = runpy.run_path(str(ROOT / "deploy/predict_onnx.py"))["read_image"]
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert (np.asarray(read(tmp_path / "deep.png")) == (values >> 8)[..., None]).all()
    assert f"of the 16 bits per pixel of {tmp_path}/deep.png the upper 8 are taken" in capsys.readouterr().err


@needs_onnx
def test_deployed_example_replaces_no_input(deployed: Path) -> None:
    before = (deployed / "a/x.png").read_bytes()
    _, errors = predict_deployed(deployed, "a/x.png", "--output", "a", status=1)
    assert "predict_onnx.py: --output a would replace the input a/x.png: name another folder" in errors
    assert (deployed / "a/x.png").read_bytes() == before


def test_other_models_are_refused_or_exported_as_float32() -> None:
    cfg = load_cfg("MEInst_RetinaNet_R_50_1x.yaml", "MODEL.MEINST.COMPONENTS", "", "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        model = build_model(cfg)
    with pytest.raises(ValueError, match="RetinaNet cannot be exported: only .* MEInstDetector"):
        make_source(as_trained(model, cfg))
    source = tiny_source("MODEL.MEINST.PRECISION", "bfloat16")
    assert source.model.precision == "float32"
    assert "bfloat16; the exported one computes in float32" in source.notes[0]


def test_check_images_are_those_of_the_test(tmp_path: Path) -> None:
    Image.new("RGB", (50, 100), (255, 0, 0)).save(tmp_path / "red.png")
    batches = check_batches([tmp_path / "red.png"], tiny_source().metadata)
    (image,) = batches[0]
    assert image.shape == (3, 192, 96)
    assert image[:, 0, 0].tolist() == [0, 0, 255]  # BGR


@needs_onnx
@pytest.mark.parametrize("seed", range(3))
def test_deployed_paste_is_that_of_the_package(seed: int) -> None:
    paste = runpy.run_path(str(ROOT / "deploy/predict_onnx.py"))["paste"]
    rng = np.random.default_rng(seed)
    templates = blob_masks(rng, 40).astype(np.float32) * 0.9
    corners = rng.uniform(-30, 120, (40, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(0, 90, (40, 2))), 1).astype(np.float32)
    boxes[0, 2:] = boxes[0, :2]  # no area
    boxes[1] = (500, 500, 600, 600)  # outside
    expected = paste_masks(torch.from_numpy(templates), torch.from_numpy(boxes), 100, 130).numpy()
    found = np.zeros_like(expected)
    for mask, template, box in zip(found, templates, boxes, strict=True):
        paste(mask, template, box)
    assert expected.sum() > 10000
    assert (found != expected).sum() <= 5
