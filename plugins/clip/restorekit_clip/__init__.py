"""CLIP as a prior, through open_clip: the image tower alone.

Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, ICML 2021
(arXiv 2103.00020). Nothing is imported here, so that listing the weights needs neither torch nor open_clip.
"""
