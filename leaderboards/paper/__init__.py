"""The numbers of the paper: data. This file only makes the folder a package, so that an editable install finds it."""
