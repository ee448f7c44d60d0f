"""What is wrong with labelled images, before anything is trained on them: copies, wrong labels, files that cannot be read.

inspection = inspect_images(open_dataset(recipe.data, for_training=False))
"""
