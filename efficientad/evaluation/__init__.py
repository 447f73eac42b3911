"""The detector against the labels of a test set."""
