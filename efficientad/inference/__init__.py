"""Use of a trained detector: predictions, results, exports."""
