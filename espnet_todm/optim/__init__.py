"""ScaledAdam and its schedules."""
