"""Empirical lower bounds on epsilon, to be printed beside the claimed upper bound."""
