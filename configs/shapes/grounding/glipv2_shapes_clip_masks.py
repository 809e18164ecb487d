"""Detection and masks by class list with the weights of glipv2_shapes_clip.py: the 24 nouns in one sentence.

    python tools/test.py configs/glipv2_shapes_clip_masks.py work_dirs/glipv2_shapes_clip/latest.pth

Zhang et al., NeurIPS 2022, in small. In training the 8 novel nouns had boxes in captions, and no masks.
"""

_base_ = './glipv2_shapes_masks.py'

model = dict(
    text=dict(
        encoder=dict(
            _delete_=True,
            type='clip',
            model='clip_tiny_shapes',
            features='phrases',
            templates='a photo of {article} {}.',
        )
    ),
    language=None,
)
