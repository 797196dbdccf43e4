"""How fast is the server, and compared with what. Run by ``make bench``; see README.md."""
