"""From a file of yours to rows a model can train on: read, check, clean, split, encode, pack."""
