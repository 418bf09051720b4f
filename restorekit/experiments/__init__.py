"""Experiments: many training runs and measurements from one file, in order, each made once.

A killed experiment goes on where it was. What a single run does is the training room, what is measured the
evaluation room.
"""
