"""The prompt database: one interface, two engines."""
