"""Causes in what was loaded and what moves."""
