"""Models beside BERT's own classes.

In reading order:

left_to_right    task heads over left-to-right models
shallow          two independent stacks, one per direction
frozen_features  features of a frozen encoder on disk
frozen_heads     heads trained on these features
frozen           the encoder and such a head as one model
"""
