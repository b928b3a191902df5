"""Neighbouring layers computed as one: their derivation, the pair of functions, and the step that takes the layers' place."""
