"""Numbers that others have published, with where they stand, packaged as ``wsbench.published``."""
