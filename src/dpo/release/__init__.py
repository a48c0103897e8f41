"""A model handed to others: merged, rounded, certified, described, audited, published."""
