"""Neighbouring layers computed as one: the derivation, the pair of functions, and the step that takes their place."""
