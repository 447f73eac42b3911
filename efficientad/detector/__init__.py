"""The method: what is saved in model.pt."""
