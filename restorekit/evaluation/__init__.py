"""Evaluation: metrics, the named protocols that make figures comparable, and the run over a folder."""
