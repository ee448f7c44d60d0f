"""What people read of a run: the table of models, the training curves and the model card."""
