"""Conversions on machines that the Hub rents by the minute: what they need, cost and run."""
