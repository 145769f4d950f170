"""Drawing instances: in images, in videos, side by side with the ground truth."""

from meinst_d2 import require_detectron2

require_detectron2()
