"""The one exception that means: what you gave me is wrong, and here is how to mend it."""


class InputError(ValueError):
    """Wrong input: a recipe, a data file, a model name, a folder that cannot be written.

    Its message is one line that says what is wrong, where (file, row counted from 1, or key) and
    how to mend it. The command line prints that line on standard error and exits with 2; in Python
    it is an ordinary ``ValueError``.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
