"""What things cost on a machine: components, whole models, real-time factor, training steps."""
