"""What takes too long for a page: one file an experiment, run by ``python -m experiments NAME``."""
