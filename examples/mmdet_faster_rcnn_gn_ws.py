"""A config for mmdetection: Faster R-CNN on COCO with GN and WS in backbone, neck and head.

python tools/train.py .../examples/mmdet_faster_rcnn_gn_ws.py   # in a clone of mmdetection 3.x
"""

_base_ = ["mmdet::_base_/models/faster-rcnn_r50_fpn.py", "mmdet::_base_/datasets/coco_detection.py",
          "mmdet::_base_/schedules/schedule_1x.py", "mmdet::_base_/default_runtime.py"]  # fmt: skip

custom_imports = dict(imports=["wsbench.integrations.mmlab"])
conv_cfg = dict(type="WS", spec="gn+ws")  # the weights' part: convolutions
norm_cfg = dict(type="wsbench", spec="gn+ws")  # the activations' part: 32 groups
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, norm_eval=False, frozen_stages=-1, init_cfg=None),
    neck=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
    ),
)
# one GPU with one image at a time, and 16 images an optimizer step, which the base's rate is for. mmengine counts
# micro-steps, so the warm-up is 16 times the base's 500.
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=16)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=8_000),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
