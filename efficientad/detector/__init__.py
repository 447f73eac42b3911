"""The method: networks, calibration and model.pt."""
