import kit  # noqa: F401 - a Python that is too old is told so here
