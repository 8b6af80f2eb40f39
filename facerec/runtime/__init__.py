"""What every part needs of the machine: files, paths, signals, the console, devices, MLflow's client, untrusted input.

Nothing here knows faces, networks or trainings.
"""
