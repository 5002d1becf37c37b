"""What the secure sum costs on this machine: real protocol machines, beside the machine's limit and beside Flower."""
