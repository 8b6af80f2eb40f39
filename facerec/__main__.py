"""`python -m facerec` is the command line."""

from facerec.cli import main

if __name__ == "__main__":
    main()
