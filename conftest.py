"""Settings of every test run, the core's and the plug-ins'."""

import torch

# Test tensors are small: threads cost more than they bring, and one thread gives the same sums everywhere.
torch.set_num_threads(1)
