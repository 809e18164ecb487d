from . import classification, detection, proposals, voc  # noqa: F401
