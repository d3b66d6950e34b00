"""Network architectures; the only modules of this package that import torch."""
