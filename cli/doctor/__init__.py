"""What `rap doctor` looks at from where it is run; what only the controller sees is in `controller/core/diagnosis`."""
