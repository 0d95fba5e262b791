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
train_dataloader = dict(batch_size=1)
# 16 images an optimizer step, as the base's four GPUs with four images each
optim_wrapper = dict(accumulative_counts=16)
