"""Find what is wrong with labelled images before training on them: copies, wrong labels, unreadable files.

inspection = inspect_images(open_dataset(recipe.data, for_training=False))
"""
