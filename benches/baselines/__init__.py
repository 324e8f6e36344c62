"""What ``seamfast.sanitize`` is raced against: the same schedule, driven as others would drive it.

All take a ``Schedule`` and do the same arithmetic to the model: as many forgetting and recovery steps, of the same
batch size, with the same rates, optimizer, pasted patterns, disturbances, mixing and distillation, and as many
evaluations of as many held-out samples. What differs is how: see each file's head. Draws differ, as each draws in its
own way.
"""
