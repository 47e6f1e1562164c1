"""Who may use which model when: decisions as plain functions, and the orchestrator that carries them out."""
