"""Loading models: embedded ones, folders, chat templates, adapters."""
