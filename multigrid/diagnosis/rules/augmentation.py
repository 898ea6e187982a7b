"""Causes in what training images go through."""
