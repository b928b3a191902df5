"""The parts of `train_cifar.py`: its flags, what they are turned into, what it prints and where it writes."""
