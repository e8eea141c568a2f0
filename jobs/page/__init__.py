"""Plain functions on one page; they know nothing of Spark."""
