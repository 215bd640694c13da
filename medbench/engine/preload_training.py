"""What trainings need besides, loaded once in the server that jobs are forked from.

Importing this module is its purpose. The first optimiser of a process makes torch load its
compiler, which takes two seconds of processor time, and would in every training.
"""

from __future__ import annotations

import torch

torch.optim.Adam([torch.zeros(1, requires_grad=True)])
