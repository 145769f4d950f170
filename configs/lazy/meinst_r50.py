"""configs/MEInst_R_50_1x_none.yaml as a LazyConfig: every part is a constructor call that can be replaced.

meinst train --config-file configs/lazy/meinst_r50.py [KEY=VALUE ...]

What is checked before the start, and what checkpoints say about themselves, is read from ``train`` and, where they have
these names, from dataloader.train.records.names, dataloader.train.batch_size, dataloader.evaluator.dataset_name,
model.proposal_generator.head.num_classes and model.proposal_generator.mask_encoder.
"""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from meinst_d2.data.loader import make_train_loader
from meinst_d2.data.mapper import MEInstDatasetMapper
from meinst_d2.encoding import PCAEncoder
from meinst_d2.evaluation import MEInstCOCOEvaluator
from meinst_d2.fcos.assign import AssignmentRule
from meinst_d2.modeling import MEInstDetector, MEInstFCOS
from meinst_d2.modeling.build import reduce_mean, with_components
from meinst_d2.modeling.criterion import MEInstCriterion
from meinst_d2.modeling.head import MEInstHead, TowerConfig
from meinst_d2.modeling.inference import InferenceRule

train = dict(
    output_dir="output/lazy_meinst_r50",
    init_checkpoint="detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    components_conflict="stop",  # where the checkpoint's components differ from the file's: "stop", "file" or "weights"
    device="cuda",
    seed=0,  # a negative one is drawn once
    max_iter=90000,
    gradient_accumulation=1,  # parts that a batch is learned in
    ema_decay=0.0,  # of the average of the weights, such as 0.9998; 0 for none
    checkpoint_period=5000,
    eval_period=5000,
    best_metric="segm/AP",  # whose best weights are kept as model_best.pth
    patience=0,  # evaluations without a better one that end training; 0 never
    validation_loss=False,  # evaluations also give the losses of the evaluator's dataset
    vis_period=0,  # iterations between pictures for TensorBoard; 0 for none
    log_period=20,
)  # these mean what SOLVER, TEST and MODEL.MEINST say in docs/config-reference.md

model = L(MEInstDetector)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=L(LastLevelP6P7)(in_channels=256, out_channels=256, in_feature="p5"),
    ),
    proposal_generator=L(MEInstFCOS)(
        in_features=["p3", "p4", "p5", "p6", "p7"],
        head=L(MEInstHead)(
            in_channels=256,
            num_levels=5,
            num_classes=80,
            mask_dim="${..mask_encoder.encoder.dim}",
            towers=L(TowerConfig)(deform="none"),
        ),
        criterion=L(MEInstCriterion)(box_loss_type="giou", reduce_mean=reduce_mean),
        assignment_rule=L(AssignmentRule)(strides=[8, 16, 32, 64, 128], size_bounds=[64, 128, 256, 512]),
        inference_rule=L(InferenceRule)(score_thresh=0.05, nms_thresh=0.6, max_detections=100),
        mask_encoder=L(with_components)(
            encoder=L(PCAEncoder)(dim=60, mask_size=28),
            path="output/components/coco_2017_train_28_60.npz",
        ),
    ),
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[1.0, 1.0, 1.0],
    precision="float32",
)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[60000, 80000, 90000]),
    warmup_factor=0.3333,
    warmup_length=500 / 90000,
    warmup_method="constant",
)

dataloader = dict(
    train=L(make_train_loader)(
        records=L(get_detection_dataset_dicts)(names="coco_2017_train"),
        mapper=L(MEInstDatasetMapper)(
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333), L(T.RandomFlip)()],
            image_format="BGR",
            mask_size="${model.proposal_generator.mask_encoder.encoder.mask_size}",
        ),
        batch_size=16,
        seed="${train.seed}",
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="BGR",
        ),
        num_workers=4,
    ),
    evaluator=L(MEInstCOCOEvaluator)(
        dataset_name="coco_2017_val", tasks=("bbox", "segm"), output_dir="${train.output_dir}"
    ),
)
