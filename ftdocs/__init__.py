import logging

__version__ = "0.1.0"

# PEFT imports it where it is installed, and on some processors it then advises another package, on standard error.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
