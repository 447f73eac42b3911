"""Files, processes and devices: nothing here knows of images or networks."""
