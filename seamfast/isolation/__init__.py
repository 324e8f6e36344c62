"""What holds a run of the gate in: its folders, its limits, what the system denies it. Standard library only."""
