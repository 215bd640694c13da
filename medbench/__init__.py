"""medbench: a benchmark for few-shot and meta-learning on medical images."""

__version__ = "0.1.0"
