"""Plain functions on one page, which do not depend on Spark."""
