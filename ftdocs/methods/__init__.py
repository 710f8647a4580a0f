"""Which weights move: one module per method, each a function from a loaded model to a trainable one."""
