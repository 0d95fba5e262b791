"""A config for mmsegmentation: DeepLabv3 on PASCAL VOC with GN and WS in backbone and heads, one image at a time.

python tools/train.py .../examples/mmseg_deeplabv3_gn_ws.py   # in a clone of mmsegmentation 1.x
"""

_base_ = ["mmseg::_base_/models/deeplabv3_r50-d8.py", "mmseg::_base_/datasets/pascal_voc12_aug.py",
          "mmseg::_base_/default_runtime.py", "mmseg::_base_/schedules/schedule_20k.py"]  # fmt: skip

custom_imports = dict(imports=["wsbench.integrations.mmlab"])
conv_cfg = dict(type="WS", spec="gn+ws")  # the weights' part: convolutions
norm_cfg = dict(type="wsbench", spec="gn+ws")  # the activations' part: 32 groups
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,  # BN's weights are no start for standardized filters
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    decode_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, num_classes=21),
    auxiliary_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, num_classes=21),
)
# one GPU with one image at a time, and 16 images an optimizer step, as the base's four GPUs with four each. mmengine
# counts micro-steps, so what counts iterations is 16 times the base's.
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=16)
train_cfg = dict(max_iters=320_000, val_interval=32_000)
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=320_000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=32_000), logger=dict(interval=800))
