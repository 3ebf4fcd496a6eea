"""Everyday inference: texts of any number through a checkpoint, packed, in order, in bounded memory."""
