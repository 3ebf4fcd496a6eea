"""The contenders, each configured at its best and checked before it is timed."""
