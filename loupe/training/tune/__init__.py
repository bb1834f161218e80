"""The search of --tune: learning rate, head size, dropout and weight decay, on features that are already computed.

In: features of training and validation pictures. Out: the best settings, and every trial.

search → trial (train one head) → table (show the trials while it runs).
"""
