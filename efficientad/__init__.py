"""EfficientAD (arXiv 2303.14535): train a visual anomaly detector on images of good parts only."""

__version__ = "0.1.0"
