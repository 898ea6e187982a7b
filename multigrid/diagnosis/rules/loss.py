"""Causes in the loss and its coefficients."""
