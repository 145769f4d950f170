"""Models by name, and trained ones from a run, a published file, a URL, imported weights, a config and weights."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from meinst_d2 import load, model_zoo
from meinst_d2.data.shapes import CATEGORIES
from meinst_d2.export import make_source
from meinst_d2.model_zoo import UnusableImage, load_trained, zoo
from meinst_d2.model_zoo.publish import publish_run
from meinst_d2.model_zoo.zoo import URLS
from tests.conftest import ROOT
from tests.model_zoo.test_publish import write_run
from tests.modeling.test_refinement import REFINED
from tests.models import fit_to_blobs, load_cfg, tiny_cfg, tiny_model, under_their_names, write_components
from tests.web import serve

CLASSES = list(CATEGORIES)


def is_tiny_model(trained: model_zoo.TrainedModel | torch.nn.Module) -> bool:
    expected, state = tiny_model().state_dict(), getattr(trained, "model", trained).state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def test_a_run_by_its_checkpoint_or_by_its_config(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for trained in (
        load_trained(weights=str(run / "model_final.pth")),
        load_trained(str(run / "config.yaml")),
        load_trained(str(run / "config.yaml"), str(run / "model_final.pth")),
        load_trained(str(run / "config.yaml"), overrides=["MODEL.WEIGHTS", str(run / "model_final.pth")]),
    ):
        assert is_tiny_model(trained) and trained.class_names == CLASSES and not trained.model.training
        assert trained.image_format == "BGR" and trained.weights == str(run / "model_final.pth")


def test_five_lines(tmp_path: Path) -> None:
    """A path, an array and an image of Pillow give the same; a photograph is turned as its EXIF orientation says."""
    run = write_run(tmp_path, "MODEL.MEINST.SCORE_THRESH_TEST", 0.0)
    model = load(publish_run(run, tmp_path, "tiny")[0])
    pixels = np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2)[:, ::-1])
    found = [
        model(image) for image in (tmp_path / "a.png", str(tmp_path / "a.png"), turned, Image.open(tmp_path / "a.png"))
    ]
    first = found[0]
    assert len(first) > 1 and first.image_size == (72, 40) and first.pred_masks.shape == (len(first), 72, 40)
    assert first.scores.tolist() == sorted(first.scores.tolist(), reverse=True)
    for other in found[1:]:
        assert torch.equal(other.pred_boxes.tensor, first.pred_boxes.tensor)
        assert all(torch.equal(other.get(name), first.get(name)) for name in ("scores", "pred_classes", "pred_masks"))
    least = first.scores[1].item()
    some = model(turned, min_score=least, masks="rle")
    assert len(some) == (first.scores >= least).sum() and not some.has("pred_masks")
    decoded = mask_utils.decode(list(some.pred_masks_rle)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded, first.pred_masks[: len(some)].numpy())


def test_several_views_where_the_config_asks_for_them(tmp_path: Path) -> None:
    run = write_run(tmp_path, "MODEL.MEINST.SCORE_THRESH_TEST", 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    several = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (40, 64)]
    plain, model = (load(run / "model_final.pth", overrides=opts) for opts in ([], several))
    found, again = model(tmp_path / "a.png"), model(pixels, masks="rle")
    assert torch.equal(found.pred_boxes.tensor, again.pred_boxes.tensor) and again.has("pred_masks_rle")
    assert found.pred_masks.shape == (len(found), 40, 72)
    mirrored = model(np.ascontiguousarray(pixels[:, ::-1]))
    assert torch.allclose(found.scores, mirrored.scores, atol=1e-5)
    assert not torch.equal(found.scores[:5], plain(pixels).scores[:5])


def test_images_that_are_something_else(tmp_path: Path) -> None:
    model = load_trained(weights=str(write_run(tmp_path) / "model_final.pth"))
    for image, message in (
        (np.zeros((9, 9, 3)), "must be (H, W, 3) uint8 RGB, not float64 of shape (9, 9, 3)"),
        (np.zeros((9, 9), np.uint8), "must be (H, W, 3) uint8 RGB, not uint8 of shape (9, 9)"),
        (torch.zeros(3, 9, 9), "must be (H, W, 3) uint8 RGB, not torch.float32 of shape"),
        (Image.fromarray(np.zeros((9, 9), np.uint16)), "mode I;16 has more than 8 bits: convert it to RGB"),
        (np.zeros((1, 5000, 3), np.uint8), "5000 x 1 pixels cannot be brought to the network's size"),
    ):
        with pytest.raises(UnusableImage, match=re.escape(message)):
            model(image)
    with pytest.raises(ValueError, match="masks = 'polygons' must be 'bitmask' or 'rle'"):
        model(np.zeros((9, 9, 3), np.uint8), masks="polygons")
    with pytest.raises(FileNotFoundError, match="the image absent.jpg does not exist"):
        model("absent.jpg")


def test_a_model_is_found_by_its_run_its_config_or_its_name(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for source, options in (
        (run / "model_final.pth", {}),
        (run / "config.yaml", {}),
        ("quick/tiny", {"weights": str(run / "model_final.pth"), "device": "cpu"}),
        (run / "model_final.pth", {"config_file": "quick/tiny", "overrides": ["INPUT.FORMAT", "RGB"]}),
    ):
        model = load(source, **options)
        assert is_tiny_model(model) and model.image_format == ("RGB" if "overrides" in options else "BGR")


def test_a_published_file_alone(tmp_path: Path) -> None:
    path = publish_run(write_run(tmp_path), tmp_path / "out", "tiny")[0]
    trained = load_trained(weights=str(path))
    assert is_tiny_model(trained) and trained.class_names == CLASSES


def test_classes_and_components_are_those_of_the_weights(tmp_path: Path) -> None:
    # The config of the zoo says 6 classes, D = 8, whitened.
    overrides = ("MODEL.MEINST.NUM_CLASSES", 2, "MODEL.MEINST.DIM_MASK", 5, "MODEL.MEINST.WHITEN", False)
    model = tiny_model(*overrides)
    about = {"class_names": ["cup", "saucer"], "encoder": "PCAEncoder", "sigmoid": True, "whiten": False}
    torch.save({"model": model.state_dict(), "meinst": about}, tmp_path / "m.pth")
    trained = load_trained("quick/tiny", str(tmp_path / "m.pth"))
    encoder = trained.model.proposal_generator.mask_encoder
    assert trained.class_names == ["cup", "saucer"] and (encoder.dim, encoder.whiten) == (5, False)
    torch.save({"model": tiny_model("MODEL.MEINST.NUM_CLASSES", 2).state_dict()}, tmp_path / "m.pth")
    trained = load_trained("quick/tiny", str(tmp_path / "m.pth"))
    assert trained.class_names == ["class 0", "class 1"]
    assert any("do not say what their classes are called" in note for note in trained.notes)


def test_published_weights_of_others_into_a_config_by_name(tmp_path: Path) -> None:
    """Their names, and none of what our checkpoints say about themselves."""
    state = tiny_model().state_dict()
    theirs = under_their_names(state)
    assert not theirs.keys() & {name for name in state if "proposal_generator.head" in name}
    torch.save({"model": theirs | {"pixel_mean": torch.zeros(3, 1, 1)}}, tmp_path / "m.pth")
    assert is_tiny_model(load_trained("quick/tiny", str(tmp_path / "m.pth")))
    with pytest.raises(ValueError, match="names no trained weights: give --weights"):
        load_trained("quick/tiny", overrides=["MODEL.WEIGHTS"])


def test_weights_say_whether_masks_are_refined(tmp_path: Path) -> None:
    state = tiny_model("MODEL.MEINST.REFINE.ENABLED", True).state_dict()
    torch.save({"model": state}, tmp_path / "m.pth")
    trained = load_trained("quick/tiny", str(tmp_path / "m.pth"))
    assert trained.model.proposal_generator.refinement is not None
    code = load_trained("quick/tiny", str(tmp_path / "m.pth"), ["MODEL.MEINST.REFINE.ENABLED", "False"])
    assert code.model.proposal_generator.refinement is None
    torch.save({"model": tiny_model(*REFINED).state_dict()}, tmp_path / "m.pth")
    refinement = load_trained("quick/tiny", str(tmp_path / "m.pth")).model.proposal_generator.refinement
    assert refinement.num_classes == len(CLASSES)
    without = load_trained("quick/tiny", str(tmp_path / "m.pth"), ["MODEL.MEINST.REFINE.CLASSIFY", "False"])
    assert without.model.proposal_generator.refinement.num_classes == 0


def test_retinanet(tmp_path: Path) -> None:
    overrides = ("MODEL.MEINST.NUM_CLASSES", 4, "MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.MEINST.COMPONENTS", "")
    model = build_model(load_cfg("demo/shapes_retinanet.yaml", *overrides))
    fit_to_blobs(model.mask_encoder)
    torch.save({"model": model.state_dict()}, tmp_path / "m.pth")
    trained = load_trained("demo/shapes_retinanet", str(tmp_path / "m.pth"))
    assert len(trained.class_names) == 4 and trained.model.mask_encoder.is_fitted


def test_weights_that_lack_something(tmp_path: Path) -> None:
    torch.save({"model": build_model(tiny_cfg()).state_dict()}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="carries no mask components: add the override"):
        load_trained("quick/tiny", str(tmp_path / "m.pth"))
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="do not belong to the config"):
        load_trained("demo/shapes", str(tmp_path / "m.pth"))
    with pytest.raises(ValueError, match="carries no config, and config.yaml is not beside it"):
        load_trained(weights=str(tmp_path / "m.pth"))
    with pytest.raises(ValueError, match="unknown key MODEL.MEINST.NO_SUCH_KEY$"):
        load_trained("quick/tiny", str(tmp_path / "m.pth"), ["MODEL.MEINST.NO_SUCH_KEY", "1"])
    state = {name: value for name, value in tiny_model().state_dict().items() if "mask_encoder." not in name}
    torch.save({"model": state}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"missing proposal_generator.mask_encoder.components"):
        load_trained("quick/tiny", str(tmp_path / "m.pth"))
    components = str(write_components(tmp_path / "c.npz"))
    trained = load_trained("quick/tiny", str(tmp_path / "m.pth"), ["MODEL.MEINST.COMPONENTS", components])
    assert trained.model.proposal_generator.mask_encoder.is_fitted


def test_a_lazy_config(tmp_path: Path) -> None:
    small = (ROOT / "configs/lazy/meinst_r50.py").read_text() + (
        "\nmodel.proposal_generator.head.num_classes = 3\nmodel.proposal_generator.mask_encoder.path = ''\n"
    )
    (tmp_path / "small.py").write_text(small)
    from detectron2.config import LazyConfig, instantiate

    model = instantiate(LazyConfig.load(str(tmp_path / "small.py")).model)
    fit_to_blobs(model.proposal_generator.mask_encoder)
    about = {"class_names": ["a", "b", "c"]}
    torch.save({"model": model.state_dict(), "meinst": about}, tmp_path / "m.pth")
    trained = load_trained(str(tmp_path / "small.py"), str(tmp_path / "m.pth"), device="cpu")
    assert trained.class_names == ["a", "b", "c"] and trained.image_format == "BGR"
    assert make_source(trained).metadata["min_size_test"] == "800"


@pytest.fixture
def web(cache: Path) -> Path:
    return cache.parent / "web"


def publish(folder: Path, output: Path) -> Path:
    return publish_run(write_run(folder), output, "tiny")[0]


def test_configs_have_names_and_unknown_ones_are_met_with_known_ones() -> None:
    for path in (*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "configs").rglob("*.py")):
        name = path.relative_to(ROOT / "configs").as_posix()
        assert model_zoo.get_config_file(name) == model_zoo.get_config_file(name.removesuffix(".yaml")) == str(path)
    for name in ("MEInst_R_50_3x", "MEInst_R_50_3x.yaml", "quick/tiny"):
        cfg = model_zoo.get_config(name)
        assert ("MEInstDetector", f"output/{Path(name).stem}") == (cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR)
    with pytest.raises(ValueError, match="unknown config MEInst_R50_1x: did you mean .*MEInst_R_50_1x"):
        model_zoo.get_config("MEInst_R50_1x")
    with pytest.raises(ValueError, match="no trained model is known for quick/tiny: train it"):
        model_zoo.get_checkpoint_url("quick/tiny")


def test_a_lazy_config_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_zoo.get_config("lazy/meinst_r50.py").model.proposal_generator.head.num_classes == 80
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    small = (ROOT / "configs/lazy/meinst_r50.py").read_text() + (
        f"\ntrain['init_checkpoint'] = '{tmp_path}/nothing.pth'\nmodel.proposal_generator.head.num_classes = 3\n"
    )
    (tmp_path / "small.py").write_text(small)
    monkeypatch.setattr(zoo, "CONFIG_FOLDERS", (tmp_path,))
    model = model_zoo.get("small.py", device="cpu")
    assert model.proposal_generator.head.cls_logits.out_channels == 3 and model.training


def test_published_checkpoints_are_linked_and_not_shipped(
    web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "MODEL_ZOO.md").read_text()
    for name in ("MEInst_R_50_1x_none", "MEInst_R_50_1x", "MEInst_R_50_3x", "MEInst_R_50_3x_512"):
        assert model_zoo.get_checkpoint_url(name) == f"https://huggingface.co/ZjuCv/AdelaiDet/resolve/main/{name}.pth"
        assert zoo.URLS[name] in page
    with serve(web) as url:
        monkeypatch.setitem(URLS, "quick/tiny", f"{url}/gone.pth")
        with pytest.raises(OSError, match=r"not be downloaded: .* by hand from https://github\S+ \(licensed .* path"):
            load_trained("quick/tiny")


def test_models_of_the_checkout_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    monkeypatch.setattr(zoo, "MODELS", tmp_path / "zoo")
    whole, half = (publish_run(run, tmp_path / "zoo", "tiny-shapes", half=half)[0] for half in (False, True))
    assert half.suffix == ".safetensors" and half.stat().st_size < 0.6 * whole.stat().st_size
    assert model_zoo.get_checkpoint_url("tiny-shapes") == str(half)
    expected = tiny_model().state_dict()
    for trained in (load_trained("tiny-shapes"), load_trained(weights="tiny-shapes"), load("tiny-shapes")):
        assert trained.class_names == CLASSES
        for name, value in trained.model.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-7)
    assert not model_zoo.get("tiny-shapes").training
    with pytest.raises(OSError, match="tiny does not exist: give --weights FILE or a URL, or .* a model: tiny-shapes"):
        load_trained(weights="tiny")


def test_a_name_gives_a_model(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = model_zoo.get("quick/tiny", device="cpu")
    assert model.training and not model.proposal_generator.mask_encoder.is_fitted
    path = publish(tmp_path, web)
    with serve(web) as url:
        monkeypatch.setitem(URLS, "quick/tiny", f"{url}/{path.name}")
        assert f"{url}/{path.name}" == model_zoo.get_config("quick/tiny", trained=True).MODEL.WEIGHTS
        assert is_tiny_model(model_zoo.get("quick/tiny", trained=True))


def test_a_published_file_is_a_model_by_path_and_by_url(web: Path, tmp_path: Path) -> None:
    path = publish(tmp_path, web)
    with serve(web) as url:
        for source in (path, str(path), f"{url}/{path.name}"):
            model = model_zoo.get(source)
            assert not model.training and is_tiny_model(model)
            assert model_zoo.get_info(source)["class_names"][0] == "ring"
    assert not is_tiny_model(model_zoo.get(path, trained=False))


def damage(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_damaged_file_is_refused(web: Path, tmp_path: Path) -> None:
    path = damage(publish(tmp_path, web))
    with pytest.raises(ValueError, match="is refused: .*Bad CRC-32"):
        model_zoo.get(path)
    with serve(web) as url, pytest.raises(ValueError, match="the download was deleted, try again"):
        model_zoo.get(f"{url}/{path.name}")
    assert path.is_file() and not list((tmp_path / "cache").rglob("*.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "carries no config, and config.yaml is not beside it: give --config-file, or pub"),
        ({"model": {}, "meinst": {"config": "A: ["}}, "the config in .* is refused: it is not YAML"),
        ({"model": {}, "meinst": {"config": "MODEL: {NEW: 1}"}}, "the config in .* does not fit .*: .*NEW"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        model_zoo.get(tmp_path / "w.pth")


def test_a_file_makes_no_other_file_be_opened(tmp_path: Path) -> None:
    components = write_components(tmp_path / "c.npz", dim=8)
    cfg = tiny_cfg("MODEL.MEINST.COMPONENTS", str(components), "MODEL.WEIGHTS", "/etc/passwd")
    torch.save({"model": tiny_model().state_dict(), "meinst": {"config": cfg.dump()}}, tmp_path / "w.pth")
    assert not model_zoo.get(tmp_path / "w.pth", trained=False).proposal_generator.mask_encoder.is_fitted
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        model_zoo.get("nowhere.pth")
