"""GroupViT, ViT-S/16, without training on masks: COCO-Object, 80 classes and background.

    python tools/convert_checkpoint.py --from groupvit group_vit_gcc_yfcc_30e.pth groupvit.safetensors
    python tools/test.py configs/groupvit_vits16_coco_object.py groupvit.safetensors
    python tools/analyze_groups.py configs/groupvit_vits16_coco_object.py groupvit.safetensors

Xu et al., CVPR 2022. Weights: those that NVlabs/GroupViT publishes, for non-commercial use, or your own of
groupvit_vits16_gcc_yfcc.py. Windows of 448 pixels on images with a shorter side of 448; a group whose best
class scores below 0.95 is background. Published: 24.3 (weights GCC+YFCC), 27.5 (GCC+RedCaps) mIoU with
background, evaluated as in groupvit_vits16_coco_object_reference.py. Here the readout is ours: soft shares,
classes of the whole image, no group that has to be foreground. About 2 GB of GPU memory (estimate). Not
reproduced: the released weights were not available. Words for what surrounds objects compete with the
classes if readout.background has names='stuff' too.
"""

_base_ = [
    '../_base_/models/groupvit_vits16.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
data = 'coco_object'
vocabulary = 'coco'  # ovd/assets/vocabularies/coco.json
threshold = 0.95
test_pipeline = _base_.resized_test_pipeline
model = dict(text=dict(vocabulary=vocabulary), **_base_.segmentation)
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict(type='TestLoop')
calibration_dataloader = _base_.calibration_images  # for tools/calibrate_thresholds.py
