"""A logged model behind HTTP: the pyfunc, its limits, decoding in child processes, `facerec serve`."""
