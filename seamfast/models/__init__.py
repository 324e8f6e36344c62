"""Small architectures by name, and models as folders."""
