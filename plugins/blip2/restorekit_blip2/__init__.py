"""BLIP-2 as a prior, through transformers: image tower, Q-Former and projection, never the language model.

Li, Li, Savarese, Hoi: BLIP-2, ICML 2023 (arXiv 2301.12597). Nothing is imported here, so that listing the
weights needs neither torch nor transformers.
"""
