"""`python -m sdm` is `taxabind-map`."""

from sdm.cli import main

main()
