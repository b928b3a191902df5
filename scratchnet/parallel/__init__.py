"""How work is cut into parts, and the threads that the parts go to."""
