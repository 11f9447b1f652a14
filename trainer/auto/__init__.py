"""`--config=auto`: a recipe chosen from the data, the machine and the time budget."""
