"""The result in use: a client's model opened again, to predict, to be measured, and to be handed on in other forms."""
