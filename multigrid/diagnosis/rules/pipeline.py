"""Causes in how batches come: order, speed, variety."""
