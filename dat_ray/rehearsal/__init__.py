"""`dat rehearse`: the whole run of a recipe with tiny random models of its own architectures, in minutes and without a GPU."""
