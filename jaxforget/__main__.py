"""`python -m jaxforget`: the command line, where its script is not on the path."""

from jaxforget.cli import main

if __name__ == "__main__":
    main()
