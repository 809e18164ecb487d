"""Prompt tuning: as glip_shapes_linear_probe.py, but only a shift of the 24 nouns' token features is learned.

    python tools/train.py configs/glip_shapes_prompt_tuning.py
    python tools/test.py configs/glip_shapes_prompt_tuning.py work_dirs/glip_shapes_novel/latest.pth \
        --cfg-options model.text.offset=work_dirs/glip_shapes_prompt_tuning/prompt.safetensors

Li et al., CVPR 2022, Appendix E, in small. The shift is a file of its own beside the weights that it was
trained with. Rate and decay are the paper's, not tuned; scores are in docs/glip_shapes.md.
"""

_base_ = './glip_shapes_linear_probe.py'

model = dict(trainable=['text_offset.rows'], text=dict(offset=True))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.05, weight_decay=0.25))
custom_hooks = [dict(type='ovd.PromptOffsetHook')]
