"""`python -m jaxforget.cli`."""

from jaxforget.cli import main

main()
