"""The model. Importing this package registers it with Detectron2.

Without Detectron2, the head and the criterion can still be imported from their own modules.
"""

from typing import Any

from meinst_d2 import has_detectron2, require_detectron2

__all__ = [
    "MEInstDetector",
    "MEInstFCOS",
    "MEInstRetinaNet",
    "TimmBackbone",
    "build_meinst_resnet_fpn_backbone",
    "build_timm_fpn_backbone",
]

if has_detectron2():
    from meinst_d2.modeling.backbones import build_meinst_resnet_fpn_backbone
    from meinst_d2.modeling.meta_arch import MEInstDetector
    from meinst_d2.modeling.proposal_generator import MEInstFCOS
    from meinst_d2.modeling.retinanet import MEInstRetinaNet
    from meinst_d2.modeling.timm_backbone import TimmBackbone, build_timm_fpn_backbone
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            require_detectron2()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
