"""Bundled weights, trained in the restorekit repository, with their model cards. Data only: nothing is imported."""
