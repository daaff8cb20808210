"""A session: a network and images opened to be run, with what belongs to it.

`opening` finds network, images and device; `loader` and `readers` bring images to the network; `replicas` are copies of it, which were
tried on noise (`trials`, `noise`, `lockstep`) and run side by side.
"""
