"""Methods that fit a head, or a part of the network, to the support set."""
