"""The files of a run, each with one reader and one writer, and the pages, panels and tables made of them."""
