"""Any restoration network as a prior: the deepest features of one that was trained on other images."""
