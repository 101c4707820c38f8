"""Alerts: packets, files, filters, and the ways out of the house."""
