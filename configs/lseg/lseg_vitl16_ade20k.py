"""LSeg on ADE20K: ViT-L/16, words of CLIP ViT-B/32, 150 classes.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitl16_ade20k.py --launcher pytorch
    python tools/test.py configs/lseg_vitl16_ade20k.py work_dirs/lseg_vitl16_ade20k/latest.pth

Li et al., ICLR 2022, as released: 240 epochs, 8 GPUs x 4 crops of 480 pixels, two batches to a step, SGD with
lr 0.001 for the ViT and ten times that for the decoder, polynomial decay. Evaluation in windows at six
scales, with mirror images. About 20 GB per GPU with --amp (estimate), less with
model.backbone.vit.grad_checkpointing=True. The ImageNet weights of the ViT go to data/weights, see
data/README.md, section Weights; testing needs none.
Published: 82.46 pixAcc, 45.37 mIoU (recalled), with class names cut to their first word: for an official
checkpoint use lseg_vitl16_ade20k_reference.py. Not yet trained by us.
"""

_base_ = [
    '../_base_/models/lseg_vitl16.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/schedules/lseg.py',
]

data = 'ade'
vocabulary = 'ade150'  # ovd/assets/vocabularies/ade150.json
max_iters = 151600  # 240 epochs of 20,210 images in batches of 32
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary), test_cfg=_base_.lseg_evaluation)
optim_wrapper = dict(accumulative_counts=2)
