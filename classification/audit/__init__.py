"""The audit of a data set: rules that must not be able to predict the labels, and how well they do (docs/audit.md)."""
