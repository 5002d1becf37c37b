"""`python -m secure_codream` is `secure-codream`."""

from secure_codream.cli import main

main()
