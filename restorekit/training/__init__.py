"""Training: one config file to the weights of a backbone, an adapter or a refiner.

What a run is: spec. What it sees: cache, sources (photographs, pairs), data, prefetch. What learns: build,
trainee, losses, learner, average, schedule, processes. What is left of it: loop, validation, checkpoint,
export, folder, curve, pictures, board, environment, clock.
"""
