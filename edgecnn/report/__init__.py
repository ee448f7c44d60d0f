"""A run for people to read: the table of models, the training curves and the model card."""
