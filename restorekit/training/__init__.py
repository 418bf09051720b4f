"""Training: what a run is (spec), its patches (data), its losses, the loop and the picture of its curve."""
