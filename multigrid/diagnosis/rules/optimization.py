"""Causes in learning rate, optimizer and precision."""
