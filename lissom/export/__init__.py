"""Hand-over: a compressed model in the form that another runtime reads."""
