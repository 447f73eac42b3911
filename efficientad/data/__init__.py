"""From files on disk to tensors."""
