"""How a page's kernel draws: vector figures, so that they are sharp at every width."""

c = get_config()  # noqa: F821 - IPython defines it
c.InlineBackend.figure_formats = {"svg"}
c.InlineBackend.rc = {}  # the style is docs/_ext/matplotlibrc, and nothing beside it
c.InteractiveShell.xmode = "Minimal"  # an expected error is shown by its message
