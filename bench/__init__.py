"""Measurements. Each file states what it times and what not; nothing here is part of the test suite."""
