"""Files of rows, compressed or not, in every form that is read."""
