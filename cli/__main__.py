"""`python -m kvblend.cli`: the kvblend command."""

from kvblend.cli import main

main()
