"""The laptop's shape of the system: PostgreSQL, a controller and an agent, run as one."""
