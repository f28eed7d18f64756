"""Texts to calibrate and to evaluate on."""
