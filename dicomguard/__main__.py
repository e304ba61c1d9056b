"""`python -m dicomguard` and the `dicomguard` command."""

from dicomguard.cli import main

if __name__ == "__main__":
    main()
