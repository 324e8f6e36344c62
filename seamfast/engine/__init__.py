"""How training and counting run: the model's copy, the steps, the counters, the events."""
