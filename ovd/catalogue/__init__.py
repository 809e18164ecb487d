"""The catalogue of published weights: what there is, where it lies, and how it becomes a model folder."""
