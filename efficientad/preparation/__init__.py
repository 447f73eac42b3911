"""The work of prepare_dataset.py; imports no torch."""
