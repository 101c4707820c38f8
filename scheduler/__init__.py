"""Visits in, products out: a pure state machine, executors (in-process and Ray) and back-pressure. No
pixels here."""
