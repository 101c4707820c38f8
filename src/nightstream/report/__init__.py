"""What a run did, told to people: comparison with the truth, tables on the terminal, pictures."""
