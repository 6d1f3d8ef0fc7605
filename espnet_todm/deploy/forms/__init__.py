"""Export forms: how each kind of model is written for a device, runs there, and is checked. One file for each form."""
