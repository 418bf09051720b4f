"""ADMS: one network for several degradations, with a few filters dedicated to each.

Park, Lee, Chun: All-in-One Image Restoration for Unknown Degradations Using Adaptive Discriminative Filters
for Specific Degradations, CVPR 2023. An independent reconstruction from the abstract and public slides: there
is no published code, and what they leave open (how filters are trained, what the classifier looks like) is
decided here and said where it is.

``Adms`` (in ``adapter``) is the adapter; ``Adaptive`` (in ``network``) what it makes of a backbone, with the
verbs of Hugging Face's PEFT. Nothing is imported here.
"""
