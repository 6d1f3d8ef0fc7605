"""Files, processes, units and checks: what the other rooms use and a speech engineer need not read."""
