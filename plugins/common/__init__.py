"""What every operator shares: the form of a contract and what is generated from it."""
