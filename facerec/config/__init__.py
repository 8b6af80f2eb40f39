"""Settings, from a command line, a YAML recipe or Python to one validated pydantic model.

`settings` holds the base class, `recipe` merges and validates, `values` says how text becomes a value, `options` makes
click options of a model, `mlproject` the text of MLproject. Nothing here knows what any setting means.
"""
