"""Our networks beside the published ones: do they compute the same, and how fast."""
