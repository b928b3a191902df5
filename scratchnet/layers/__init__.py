"""The layers: for each its derivation, its forward and backward as plain functions, and the Module around them."""
