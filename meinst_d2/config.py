"""Every key of this project, with its meaning, unit and allowed values."""

from __future__ import annotations

from typing import get_args

from meinst_d2 import require_detectron2

require_detectron2()

from detectron2.config import CfgNode as CN  # noqa: E402

from meinst_d2.config_file import value_of  # noqa: E402
from meinst_d2.encoding import MASK_ENCODER_REGISTRY  # noqa: E402
from meinst_d2.fcos.losses import BoxLossType, CoefficientLossType  # noqa: E402
from meinst_d2.precision import Precision  # noqa: E402

DEFAULT_COMPONENTS = "output/components/coco_2017_train_28_60.npz"
"""Where ``meinst fit --dataset coco_2017_train`` writes by default."""
CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.MEINST.MASK_PREDICTOR": ("conv", "large_kernel"),
    "MODEL.MEINST.BOX_LOSS_TYPE": get_args(BoxLossType),
    "MODEL.MEINST.MASK_LOSS_TYPE": get_args(CoefficientLossType),
    "MODEL.MEINST.COMPONENTS_CONFLICT": ("stop", "file", "weights"),
    "MODEL.MEINST.PRECISION": get_args(Precision),
    "MODEL.MEINST.CHANNELS_LAST": ("auto", "always", "never"),
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
}
"""The values of the keys that name one of a few. ``modeling.build`` adds those of its parts."""


def check_choices(cfg: CN) -> None:
    """Raise a ValueError if a key has a value that is not among its :data:`CHOICES`, or names no encoder."""
    for key, choices in {
        **CHOICES,
        "MODEL.MEINST.ENCODER": tuple(sorted(name for name, _ in MASK_ENCODER_REGISTRY)),
    }.items():
        value = value_of(cfg, key)
        if value not in choices:
            raise ValueError(f"{key} = {value!r} is none of {', '.join(choices)}")


def add_meinst_config(cfg: CN) -> None:
    """Add ``MODEL.MEINST`` and the few keys elsewhere that this project reads.

    Other keys keep Detectron2's meaning: ``MODEL.MASK_ON`` False gives plain FCOS, ``TEST.DETECTIONS_PER_IMAGE`` caps
    the detections, ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` says whether images without objects are trained on.
    """
    _add_computing(cfg.MODEL)
    _add_head(cfg.MODEL.MEINST)
    _add_detection(cfg.MODEL.MEINST)
    _add_masks(cfg.MODEL.MEINST)
    _add_refinement(cfg.MODEL.MEINST)
    _add_timm(cfg.MODEL)
    _add_augmentation(cfg)
    _add_tiles(cfg)
    # "SGD" (Detectron2's) or "AdamW" (momentum keys do not apply; BASE_LR, WEIGHT_DECAY and clipping do).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Of AdamW: how slowly the means of gradients and of their squares change. 0.95 for the latter learns faster where
    # there are few iterations.
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # Average the weights over iterations with this decay, such as 0.9998, and evaluate and publish the average; 0 for
    # none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Parts that a batch is learned in, one after another, before the weights are updated: the memory of IMS_PER_BATCH
    # divided by this, the gradients of the whole.
    cfg.SOLVER.GRADIENT_ACCUMULATION = 1
    # With TEST.EVAL_PERIOD: the metric, of the first dataset of DATASETS.TEST, whose best weights are kept as
    # model_best.pth ("segm/AP", "bbox/AP50", ...); "" for none. Without masks "segm" means "bbox".
    cfg.TEST.BEST_METRIC = "segm/AP"
    # Evaluations in a row without a better BEST_METRIC after which training ends; 0 for never.
    cfg.TEST.PATIENCE = 0
    # Every evaluation also gives the training losses of the first dataset of DATASETS.TEST, as validation/loss_*.
    cfg.TEST.VALIDATION_LOSS = False


def precision_of(cfg: CN) -> str:
    """What the model computes in: ``MODEL.MEINST.PRECISION``, or "float16" where ``SOLVER.AMP.ENABLED`` asks for it."""
    if cfg.MODEL.MEINST.PRECISION == "float32" and cfg.SOLVER.AMP.ENABLED:
        return "float16"
    return cfg.MODEL.MEINST.PRECISION


def channels_last_of(cfg: CN) -> bool:
    """Whether ``MODEL.MEINST.CHANNELS_LAST`` means so on ``MODEL.DEVICE``."""
    choice = cfg.MODEL.MEINST.CHANNELS_LAST
    return choice == "always" or (choice == "auto" and cfg.MODEL.DEVICE == "cpu")


def _add_computing(model: CN) -> None:
    meinst = model.MEINST = CN()
    # What convolutions compute in, in training and prediction: "float32", "float16" (training scales the loss) or
    # "bfloat16". Losses, scores and masks are float32 always. SOLVER.AMP.ENABLED means "float16", as in Detectron2.
    meinst.PRECISION = "float32"
    # Keep images and feature maps with channels last in memory: "always", "never", or "auto" for CPUs alone, where it
    # was measured to pay (docs/performance.md). Results are the same but for rounding.
    meinst.CHANNELS_LAST = "auto"


def _add_head(meinst: CN) -> None:
    # Foreground classes. Where nothing sets it, meinst train counts those of the first dataset of DATASETS.TRAIN.
    meinst.NUM_CLASSES = 80
    # Feature maps that the head runs on, fine to coarse.
    meinst.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Levels made from p5 by strided convolutions: 0, 1 (p6) or 2 (p6, p7). Backbones of Detectron2's registry that
    # give p3 to p5 get them where IN_FEATURES asks for levels that they lack.
    meinst.TOP_LEVELS = 2

    # Convolutions of each tower, and of a tower that the others share.
    meinst.NUM_CLS_CONVS = 4
    meinst.NUM_BOX_CONVS = 4
    meinst.NUM_MASK_CONVS = 4
    meinst.NUM_SHARE_CONVS = 0
    # Normalisation of the towers: "GN" (32 groups) or "none".
    meinst.NORM = "GN"
    # Deformable convolutions: "none", "last" for the last convolution of every tower (paper, table 5), or "all".
    meinst.DEFORM_CONV = "none"
    # Version 2: deformable convolutions also weigh their taps.
    meinst.DEFORM_MODULATED = False
    # What predicts the coefficients from the mask tower: "conv" (3 x 3), or "large_kernel" (k x 1 and 1 x k, both ways
    # round) with k = LARGE_KERNEL_SIZE (paper, table 5).
    meinst.MASK_PREDICTOR = "conv"
    meinst.LARGE_KERNEL_SIZE = 9
    # Learn a factor on the box distances of each level.
    meinst.USE_SCALE = True
    # Class probability that the untrained head predicts everywhere (RetinaNet, section 4.1).
    meinst.PRIOR_PROB = 0.01


def _add_detection(meinst: CN) -> None:
    # Distances in input pixels between levels, one fewer than IN_FEATURES: a location learns an object when the
    # farthest side of its box is between the two bounds of the location's level (FCOS, section 3.2).
    meinst.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Positive locations lie within CENTER_SAMPLING_RADIUS strides of the box's centre; without centre sampling,
    # anywhere in the box.
    meinst.CENTER_SAMPLING = True
    meinst.CENTER_SAMPLING_RADIUS = 1.5

    # Focal loss of the classes.
    meinst.FOCAL_LOSS_ALPHA = 0.25
    meinst.FOCAL_LOSS_GAMMA = 2.0
    # "giou", "iou" or "linear_iou".
    meinst.BOX_LOSS_TYPE = "giou"
    # Factors of the losses (the paper's lambdas).
    meinst.LOSS_WEIGHT_CLS = 1.0
    meinst.LOSS_WEIGHT_BOX = 1.0
    meinst.LOSS_WEIGHT_CENTERNESS = 1.0
    meinst.LOSS_WEIGHT_MASK = 1.0

    # A (location, class) pair is a candidate when its class probability, or with THRESH_WITH_CENTERNESS its product
    # with centerness, exceeds SCORE_THRESH_TEST.
    meinst.SCORE_THRESH_TEST = 0.05
    meinst.THRESH_WITH_CENTERNESS = False
    # Candidates kept per image and level.
    meinst.PRE_NMS_TOPK_TEST = 1000
    # Overlap above which one of two boxes of a class is dropped; 0 or less drops none.
    meinst.NMS_THRESH_TEST = 0.6


def _add_masks(meinst: CN) -> None:
    # What the mask branch learns (paper, table 3): "explicit" (the coefficients of the encoded mask), "implicit" (any
    # coefficients whose decoded pixels are right) or "none" (S*S pixel logits; no encoder and no components).
    meinst.MASK_REPRESENTATION = "explicit"
    # The encoder, by name in MASK_ENCODER_REGISTRY: "PCAEncoder", "ClassPCAEncoder" (one dictionary per class,
    # meinst fit --class-specific) or "DCTEncoder" (nothing to fit).
    meinst.ENCODER = "PCAEncoder"
    # Loss of "explicit" coefficients: "l2", "l1", "smooth_l1" or "cosine" (paper, table 4). WEIGHTS "deviation" counts
    # the error of a coefficient by the standard deviation of its component, "uniform" counts all alike.
    meinst.MASK_LOSS_TYPE = "l2"
    meinst.MASK_LOSS_WEIGHTS = "uniform"
    # D, coefficients per mask, and S, the side of the mask template in pixels.
    meinst.DIM_MASK = 60
    meinst.MASK_SIZE = 28
    # Encode the logits of the pixels (clamped, see SIGMOID_CLAMP) and decode through a sigmoid; else the pixels.
    meinst.SIGMOID = True
    # Bounds of the random clamp of a pixel before its logit; equal values mean no randomness.
    meinst.SIGMOID_CLAMP = (0.01, 0.05)
    # Divide coefficients by the standard deviation of their component.
    meinst.WHITEN = True
    # The components that meinst fit wrote. Not needed where MODEL.WEIGHTS carries them.
    meinst.COMPONENTS = ""
    # Training that starts from weights whose components differ from the file's: "stop", or take the "file"'s (the mask
    # predictor is re-initialized, and D and S may differ) or the "weights"'. On resume and evaluation the weights' win.
    meinst.COMPONENTS_CONFLICT = "stop"
    # The box that a mask is pasted in where the box leaves the image: "predicted" (whole) or "clipped" (squeezed into
    # the visible part, as the published implementation does).
    meinst.MASK_PASTE_BOX = "predicted"
    # What predictions have: "bitmask" (Detectron2's pred_masks, the size of the image), "rle" (pred_masks_rle, COCO
    # encodings of those, in a fraction of the time and memory) or "template" (pred_mask_templates, S x S probabilities,
    # and pred_mask_boxes, where they go).
    meinst.MASK_OUTPUT = "bitmask"


def _add_refinement(meinst: CN) -> None:
    refine = meinst.REFINE = CN()
    # Correct the mask of every detection from the features in its enlarged box (docs/better-masks.md).
    refine.ENABLED = False
    # A finer map that is looked at as well, of the network below FPN: "res2", or "" for none. Masks become finer, at
    # little cost. The backbones build_meinst_resnet_fpn_backbone and build_timm_fpn_backbone give it.
    refine.DETAIL_FEATURE = ""
    # How much longer than the box the sides are of what is looked at, and of what the mask covers.
    refine.CONTEXT = 1.2
    # Side of what is sampled from the feature maps in a box, in cells, and of the mask, in pixels: that doubled a few
    # times.
    refine.POOLER_RESOLUTION = 14
    refine.OUTPUT_SIZE = 28
    # 3 x 3 convolutions, and their channels (a multiple of 32).
    refine.NUM_CONVS = 3
    refine.CONV_DIM = 64
    # Give the decoded template to the convolutions, and let them correct it; without, they draw the mask alone.
    refine.CODE_AS_PRIOR = True
    # Replace the box of a detection by the mean of itself and of the refined mask's.
    refine.MEAN_BOX = False
    # Multiply the score of a detection by the mean probability inside its refined mask.
    refine.MASKNESS = False
    # Predict the class again from what is looked at, and multiply the score by the root of its probability.
    refine.CLASSIFY = False
    # Positive locations to learn from, per image of a batch.
    refine.SAMPLES_PER_IMAGE = 16
    # Side of the objects' masks that it learns from, in pixels.
    refine.TARGET_SIZE = 112
    # Factors of the losses of refined masks and of their classes.
    refine.LOSS_WEIGHT = 1.0
    refine.LOSS_WEIGHT_CLS = 0.5


def _add_timm(model: CN) -> None:
    timm = model.TIMM = CN()
    # With MODEL.BACKBONE.NAME build_timm_fpn_backbone: the model of timm that FPN is built on. Where none is set,
    # INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD are those that timm trained it with. MODEL.FPN.IN_FEATURES
    # names its maps by stride (res3 for 8), MODEL.BACKBONE.FREEZE_AT counts its stages.
    timm.NAME = "tf_efficientnet_lite0"
    # Without MODEL.WEIGHTS, start from the weights that timm downloads, or from a file of them.
    timm.PRETRAINED = True
    timm.CHECKPOINT = ""
    # Keep batch normalisation as it starts.
    timm.FREEZE_NORM = True
    # Rate of stochastic depth.
    timm.DROP_PATH = 0.0
    # Factor of the learning rate from every layer to the one below; 1 for the same in all, 0.7 to 0.9 for transformers.
    timm.LR_DECAY = 1.0


def _add_tiles(cfg: CN) -> None:
    tiles = cfg.TEST.TILES = CN()
    # Predict and evaluate in overlapping tiles of this many pixels of the image a side; 0 looks at whole images.
    tiles.SIZE = 0
    # Least share of a tile's side that neighbours have in common; more than the objects' size joins them best.
    tiles.OVERLAP = 0.2


def _add_augmentation(cfg: CN) -> None:
    cfg.INPUT.SCALE_JITTER, cfg.INPUT.COLOR_JITTER, cfg.INPUT.COPY_PASTE = CN(), CN(), CN()
    # Large-scale jitter, in place of MIN_SIZE_TRAIN and MAX_SIZE_TRAIN: an image is resized to RANGE of what fits into
    # SIZE (height, width), and a random part of that size is cut from larger ones.
    cfg.INPUT.SCALE_JITTER.ENABLED = False
    cfg.INPUT.SCALE_JITTER.RANGE = (0.1, 2.0)
    cfg.INPUT.SCALE_JITTER.SIZE = (1024, 1024)
    # Factors of brightness, contrast and saturation between 1 - x and 1 + x; 0 leaves them.
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0
    # Share of the images that get objects of another image of the set, which hide what is below them.
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    # A pipeline of the library albumentations, applied after these: what albumentations.save(pipeline, "file.yaml",
    # data_format="yaml") wrote.
    cfg.INPUT.ALBUMENTATIONS = ""
